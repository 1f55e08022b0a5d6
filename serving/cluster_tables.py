"""The tables that a gateway's pods follow, in a ConfigMap: compressed, because that holds no more than 1 MiB.

A kubelet looks at the ConfigMaps of its pods once a minute, and at once when a pod changes: so the pods are touched.
Whoever writes says which version it is a change of, so that of two writers one is refused.
"""

from __future__ import annotations

import base64
import gzip
import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serving.cluster import CONFIG_MAPS, PODS, Cluster, ClusterError
from serving.cluster_view import Watched
from serving.envoy import Config
from serving.gateway_objects import TABLES_SEEN
from serving.gateway_pod import PACKED
from serving.pod_parts import Object
from serving.router import RouterError

_logger = logging.getLogger(__name__)

_MOST_BYTES = 2**20
"""Of all values of a ConfigMap together, in the cluster's own encoding."""


class ConfigMapTables:
    """`Tables` in the ConfigMap `name`."""

    def __init__(self, cluster: Cluster, watched: Watched, name: str, pods: Callable[[], list[Object]]) -> None:
        """`watched`: knows the ConfigMap; `pods`: those that mount it."""
        self._cluster, self._watched, self._name, self._pods = cluster, watched, name, pods
        self._turn = threading.Lock()
        self._read: dict[str, tuple[str, Config]] = {}
        """Tables by their name, each with what it was read from."""

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Of this process; another one's writing is noticed when it comes to that."""
        with self._turn:
            yield

    def read(self, name: str) -> Config | None:
        """Shared: whoever gets it must not change it."""
        content = (self._object().get("binaryData") or {}).get(f"{name}{PACKED}")
        if content is None:
            return None
        known = self._read.get(name)
        if known is None or known[0] != content:
            known = self._read[name] = (content, unpacked(content))
        return known[1]

    def write(self, name: str, table: Config) -> None:
        content = packed(table)
        there = self._object()
        values = {**(there.get("binaryData") or {}), f"{name}{PACKED}": content}
        if values == there.get("binaryData"):
            return
        if (size := sum(map(len, values.values()))) > _MOST_BYTES:
            words = f"the gateway's tables take {size} bytes, and a ConfigMap holds {_MOST_BYTES}"
            raise RouterError(f"{words}: give some models an installation of their own", retryable=False)
        changes = {
            "metadata": {"resourceVersion": there["metadata"]["resourceVersion"]},
            "binaryData": {f"{name}{PACKED}": content},
        }
        with _translated():
            self._watched.take(self._cluster.change(CONFIG_MAPS, self._name, changes))
        self._touch(table["version_info"])

    def last_words(self) -> str:
        """Of the first pod that has something to say."""
        try:
            for pod in self._pods():
                if said := self._cluster.log(pod["metadata"]["name"], "envoy", 1):
                    return said[-1]
        except ClusterError as error:
            return str(error)
        return "it says nothing"

    def _object(self) -> Object:
        with _translated():
            found = next((one for one in self._watched.all() if one["metadata"]["name"] == self._name), None)
        if found is None:
            raise RouterError(f"the gateway's tables are not there: no ConfigMap {self._name}", retryable=True)
        return found

    def _touch(self, version: str) -> None:
        """A pod that cannot be touched follows within a minute, and nobody believes that it has before."""
        with _translated():
            pods = self._pods()
        for pod in pods:
            try:
                self._cluster.annotate(PODS, pod["metadata"]["name"], {TABLES_SEEN: version})
            except ClusterError as error:
                if error.status != 404:
                    _logger.warning("the gateway follows late: %s", error)


def packed(table: Config) -> str:
    """As the ConfigMap has it: the same for the same table."""
    return base64.b64encode(gzip.compress(json.dumps(table).encode(), mtime=0)).decode()


def unpacked(content: str) -> Config:
    """`RouterError` where somebody has written something else there."""
    try:
        table: Config = json.loads(gzip.decompress(base64.b64decode(content)))
    except (ValueError, OSError, EOFError) as error:
        raise RouterError(f"the gateway's tables are broken: {error}", retryable=False) from error
    return table


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except ClusterError as error:
        raise RouterError(f"routes cannot be written: {error}", retryable=error.retryable) from error
