"""What model servers are told that nobody else may read: Secrets of the cluster, which their pods have as variables.

There are two, because what a model is fetched with is no business of a server that has its model. They are written
before a revision that needs them starts, and once by each controller where they are there: so a pod that takes the
place of another later is told what is valid then.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping

from serving.cluster import SECRETS, Cluster
from serving.pod_parts import INSTALLATION, Object


def names_of(installation: str) -> tuple[str, str]:
    """Of the Secret of every model server, and of that of those which fetch their models."""
    return f"{installation}-servers", f"{installation}-models"


class ServerSecrets:
    """Those of one installation. Every method raises `ClusterError`."""

    def __init__(
        self, cluster: Cluster, installation: str, every: Mapping[str, str], fetching: Mapping[str, str]
    ) -> None:
        """Variables of `every` server, and of those besides that are `fetching` their models."""
        self._cluster, self._installation = cluster, installation
        self._contents = dict(zip(names_of(installation), (dict(every), dict(fetching)), strict=True))
        self._renewed = False

    @property
    def every(self) -> tuple[str, ...]:
        """Name of the Secret of every server, where it has anything to say."""
        return self._filled(0)

    @property
    def fetching(self) -> tuple[str, ...]:
        """The same of those that fetch."""
        return self._filled(1)

    def ensure(self, *, fetches: bool) -> None:
        """See that what a server needs is there."""
        for name in (*self.every, *(self.fetching if fetches else ())):
            self._cluster.apply(self._object(name))

    def renew(self) -> None:
        """Bring those that are there up to date, the first time that this is asked for."""
        if self._renewed:
            return
        for name in (*self.every, *self.fetching):
            there, wanted = self._cluster.get(SECRETS, name), self._object(name)
            if there is not None and there.get("data") != wanted["data"]:
                self._cluster.apply(wanted)
        self._renewed = True

    def purge(self) -> None:
        """Remove them."""
        for name in self._contents:
            there = self._cluster.get(SECRETS, name)
            if there is not None:
                self._cluster.delete(SECRETS, name, there["metadata"]["uid"])

    def _filled(self, number: int) -> tuple[str, ...]:
        name = names_of(self._installation)[number]
        return (name,) if self._contents[name] else ()

    def _object(self, name: str) -> Object:
        labels = {
            "app.kubernetes.io/part-of": self._installation,
            "app.kubernetes.io/managed-by": "mlflow-promote",
            INSTALLATION: self._installation,
        }
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": self._cluster.namespace, "labels": labels},
            "type": "Opaque",
            "data": {key: base64.b64encode(value.encode()).decode() for key, value in self._contents[name].items()},
        }
