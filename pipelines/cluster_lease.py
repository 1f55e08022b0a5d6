"""Who leads, as a Lease of the cluster: for a store that is a file, which two nodes do not share.

Clocks of pods may be far apart, so nobody's time is compared with another's: a lease has run out where it was not
renewed for as long as it says, since it was first seen so. That is how other controllers of a cluster hold theirs.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from pipelines.store import StoreError
from serving.cluster import Cluster, ClusterError, Kind
from serving.pod_parts import INSTALLATION, Object

LEASES = Kind("coordination.k8s.io/v1", "leases")

_CONFLICT = 409
_RENEWALS = 3
"""So many times a lease is renewed while it runs, however often it is asked for."""


class ClusterLease:
    """`Lease` of one installation."""

    def __init__(self, cluster: Cluster, installation: str) -> None:
        self._cluster = cluster
        self._installation = installation
        self._name = f"{installation}-controller"
        self._turn = threading.Lock()
        self._seen = ("", 0.0)
        """The version of the lease that was seen last, and when it was seen first, by the monotonic clock."""
        self._own: tuple[str, float] | None = None
        """Who of this process has it, and until when it need not be renewed."""

    def acquire(self, holder: str, seconds: float) -> bool:
        """See `Lease`. A part of a second counts as a whole one."""
        with self._turn, _translated():
            if self._own and self._own[0] == holder and time.monotonic() < self._own[1]:
                return True
            lease = self._lease()
            if not self._free(lease, holder):
                self._own = None
                return False
            now, spec = _now(), lease.get("spec") or {}
            wanted: dict[str, Any] = {"holderIdentity": holder, "leaseDurationSeconds": max(1, math.ceil(seconds))}
            if spec.get("holderIdentity") != holder:
                wanted |= {"acquireTime": now, "leaseTransitions": (spec.get("leaseTransitions") or 0) + 1}
            taken = self._write(lease, wanted | {"renewTime": now})
            self._own = (holder, time.monotonic() + seconds / _RENEWALS) if taken else None
            return taken

    def release(self, holder: str) -> None:
        """See `Lease`."""
        with self._turn, _translated():
            self._own = None
            lease = self._lease()
            if (lease.get("spec") or {}).get("holderIdentity") == holder:
                self._write(lease, {"holderIdentity": None, "renewTime": None})

    def holder(self) -> tuple[str, datetime] | None:
        """See `Lease`; until when is told by the clock of this machine."""
        with self._turn, _translated():
            lease = self._lease()
            left = self._left(lease)
            name = (lease.get("spec") or {}).get("holderIdentity")
            return (name, datetime.now(UTC) + timedelta(seconds=left)) if name and left > 0 else None

    def _lease(self) -> Object:
        """As it is; made where it is not there, with nobody's name in it, so that it does not matter by whom."""
        found = self._cluster.get(LEASES, self._name)
        if found is None:
            metadata = {
                "name": self._name,
                "namespace": self._cluster.namespace,
                "labels": {INSTALLATION: self._installation, "app.kubernetes.io/managed-by": "mlflow-promote"},
            }
            found = self._cluster.apply({"apiVersion": LEASES.api, "kind": "Lease", "metadata": metadata})
        version = found["metadata"]["resourceVersion"]
        if version != self._seen[0]:
            self._seen = (version, time.monotonic())
        return found

    def _free(self, lease: Object, holder: str) -> bool:
        named = (lease.get("spec") or {}).get("holderIdentity")
        return not named or named == holder or self._left(lease) <= 0

    def _left(self, lease: Object) -> float:
        """Seconds until it has run out."""
        told = (lease.get("spec") or {}).get("leaseDurationSeconds") or 0
        return float(self._seen[1] + told - time.monotonic())

    def _write(self, lease: Object, spec: Object) -> bool:
        """Whether nobody else has written in between."""
        version = {"resourceVersion": lease["metadata"]["resourceVersion"]}
        try:
            written = self._cluster.change(LEASES, self._name, {"metadata": version, "spec": spec})
        except ClusterError as error:
            if error.status == _CONFLICT:
                return False
            raise
        self._seen = (written["metadata"]["resourceVersion"], time.monotonic())
        return True


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except ClusterError as error:
        raise StoreError(f"the lease: {error}", retryable=error.retryable) from error
