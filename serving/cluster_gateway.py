"""The gateway in a cluster: Envoys as a Deployment, which Kubernetes runs and heals.

The key to its pods lies in a Secret and is made once; what they serve is kept by `serving.cluster_tables`. None of it
needs the controller once it is there.
"""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property

from serving.cluster import CONFIG_MAPS, DEPLOYMENTS, SECRETS, SERVICES, Cluster, ClusterError, Kind
from serving.cluster_access import Access, Ask
from serving.cluster_tables import packed
from serving.cluster_view import View
from serving.envoy import CLUSTERS_FILE, ROUTES_FILE, GatewaySettings, bootstrap, cluster_table, route_table
from serving.envoy_admin import EnvoyAdmin
from serving.envoy_control import KEY_HEADER
from serving.gateway import GatewayError
from serving.gateway_objects import ACCESS_LOG, ADMIN, DOOR, KEY, LISTENS, TABLES, GatewayObjects, tables_of
from serving.gateway_pod import PACKED
from serving.image_context import USER
from serving.pod_parts import Object
from serving.router import RouterError

COMPONENT = "app.kubernetes.io/component"
_START_SECONDS = 300.0
"""How long a gateway may take to start; its image may have to be pulled first."""
_LOOK_SECONDS = 0.5


def bootstrap_of(settings: GatewaySettings) -> str:
    """What Envoy starts with in its pod, as JSON."""
    inside = replace(settings, host="0.0.0.0", port=LISTENS, admin_port=ADMIN)  # noqa: S104 - of a pod
    return json.dumps(bootstrap(inside, TABLES, ACCESS_LOG))


class GatewayPods:
    """The pods of a gateway, and how each is asked."""

    def __init__(self, view: View, access: Access, key: Callable[[], str]) -> None:
        """`key`: what pods want to be shown."""
        self._view, self._access, self._key = view, access, key

    def all(self) -> list[Object]:
        """Those that have begun to run, ending ones too. Raises `ClusterError`."""
        return [pod for pod in pods_of(self._view) if has_begun(pod)]

    def asks(self) -> Mapping[str, Ask]:
        """How each of them is asked, by its name. Raises `OSError`."""
        try:
            return {pod["metadata"]["name"]: self._asked(pod) for pod in self.all()}
        except ClusterError as error:
            raise OSError(str(error)) from error

    def admins(self) -> list[EnvoyAdmin]:
        """The administrations of those that take requests. Raises `RouterError`."""
        try:
            return [self._admin(pod) for pod in self.all() if takes_requests(pod)]
        except ClusterError as error:
            raise RouterError(str(error), retryable=error.retryable) from error

    def _asked(self, pod: Object) -> Ask:
        name, address = pod["metadata"]["name"], pod["status"]["podIP"]
        return self._access.pod(name, address, DOOR, {KEY_HEADER: self._key()})

    def _admin(self, pod: Object) -> EnvoyAdmin:
        asked = self._asked(pod)

        def ask(method: str, path: str) -> tuple[int, bytes]:
            status, _, body = asked(method, f"/admin{path}")
            return status, body

        return EnvoyAdmin(f"pod {pod['metadata']['name']}", ask)


def pods_of(view: View) -> Sequence[Object]:
    """Every pod of the gateway. Raises `ClusterError`."""
    return view.pods(COMPONENT).get("gateway", ())


def has_begun(pod: Object) -> bool:
    """Whether its containers run or ran: before, it has seen no request and cannot be asked."""
    of = [*pod["status"].get("containerStatuses", ())]
    return bool(of) and all("running" in one["state"] or one["restartCount"] > 0 for one in of)


def takes_requests(pod: Object) -> bool:
    """Whether the cluster sends it any: it is ready, and not about to end."""
    conditions = pod["status"].get("conditions") or ()
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]


class ClusterGateway:
    """`TrafficGateway` that is a Deployment."""

    def __init__(
        self,
        cluster: Cluster,
        view: View,
        settings: GatewaySettings,
        name: str,
        objects: Callable[[], GatewayObjects],
        start_seconds: float = _START_SECONDS,
    ) -> None:
        """`settings`: `host` is where nodes are reached; `name`: of its objects, which may take an image to be made."""
        self.settings = settings
        self._cluster, self._view, self._name, self._objects = cluster, view, name, objects
        self._start_seconds = start_seconds

    @property
    def url(self) -> str:
        """At its own name inside the cluster, or where its Service is published."""
        with _translated("find the gateway"):
            service = self._cluster.get(SERVICES, self._name)
        if service is None:
            raise GatewayError(f"cannot find the gateway: no Service {self._name}", retryable=True)
        return url_of(service, self.settings.host)

    def ensure(self) -> None:
        """See `TrafficGateway`."""
        wanted = self._objects()
        with _translated("start the gateway"):
            if self._cluster.get(SECRETS, wanted.name) is None:
                self._cluster.apply(wanted.secret(secrets.token_hex(16)))
            if self._cluster.get(CONFIG_MAPS, wanted.tables) is None:
                self._cluster.apply(wanted.served() | {"binaryData": nothing_served(self.settings)})
            self._cluster.apply(wanted.boot())
            self._cluster.apply(wanted.reached())
            self._cluster.apply(wanted.budget(self._cluster.budgets()))
            self._cluster.apply(wanted.deployment(int(USER.partition(":")[0])))
            self._await()

    def leave(self) -> None:
        """It needs nobody."""

    def stop(self, drain_seconds: float = 30.0) -> None:
        """End it, and wait until it has ended; what it serves and its key stay."""
        with _translated("end the gateway"):
            for kind in (Kind(self._cluster.budgets(), "poddisruptionbudgets"), SERVICES, DEPLOYMENTS):
                self._delete(kind, self._name)
            deadline = time.monotonic() + drain_seconds + self._start_seconds
            while self._cluster.get(DEPLOYMENTS, self._name) is not None:
                if time.monotonic() > deadline:
                    raise GatewayError("the gateway's pods do not end", retryable=True)
                time.sleep(_LOOK_SECONDS)

    def purge(self) -> None:
        """Remove what `stop` left."""
        with _translated("remove what is left of the gateway"):
            for kind, name in ((CONFIG_MAPS, self._name), (CONFIG_MAPS, tables_of(self._name)), (SECRETS, self._name)):
                self._delete(kind, name)

    @cached_property
    def key(self) -> str:
        """What its pods want to be shown. Raises `ClusterError`."""
        there = self._cluster.get(SECRETS, self._name)
        if there is None:
            raise ClusterError(f"cannot ask the gateway: no Secret {self._name}", retryable=True)
        return base64.b64decode(there["data"][KEY]).decode()

    def _delete(self, kind: Kind, name: str) -> None:
        there = self._cluster.get(kind, name)
        if there is not None:
            self._cluster.delete(kind, name, there["metadata"]["uid"])

    def _await(self) -> None:
        deadline = time.monotonic() + self._start_seconds
        while not self._rolled_out():
            if time.monotonic() > deadline:
                said = "; ".join(filter(None, map(waits, pods_of(self._view)))) or "the cluster does not say why"
                raise GatewayError(f"the gateway did not start in {self._start_seconds:.0f} s: {said}", retryable=True)
            time.sleep(_LOOK_SECONDS)

    def _rolled_out(self) -> bool:
        """Whether every replica is as it is wanted now and takes requests."""
        there = self._cluster.get(DEPLOYMENTS, self._name)
        if there is None or there["status"].get("observedGeneration", 0) < there["metadata"]["generation"]:
            return False
        wanted, status = there["spec"]["replicas"], there["status"]
        counts = [status.get(name, 0) for name in ("replicas", "updatedReplicas", "readyReplicas")]
        return counts == [wanted] * len(counts) and self._ready() >= wanted

    def _ready(self) -> int:
        return sum(takes_requests(pod) for pod in pods_of(self._view))


def waits(pod: Object) -> str:
    """In the cluster's own words, why the pod does not run; empty where it says nothing."""
    status = pod["status"]
    containers = [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]
    states = [state for one in containers for state in one.get("state", {}).values()]
    said = [*states, *(one for one in status.get("conditions", ()) if one["status"] == "False")]
    told = [f"{one.get('reason', '')} {one.get('message', '')}".strip() for one in said]
    return next(filter(None, told), "")


def nothing_served(settings: GatewaySettings) -> dict[str, str]:
    """The values of a ConfigMap whose gateway knows no model."""
    tables = {CLUSTERS_FILE: cluster_table((), settings), ROUTES_FILE: route_table((), settings)}
    return {f"{name}{PACKED}": packed(table) for name, table in tables.items()}


def url_of(service: Object, node: str) -> str:
    """Where clients reach a Service; `node`: a node, where it is published at a port of all nodes."""
    (port,) = service["spec"]["ports"]
    given = service["status"].get("loadBalancer", {}).get("ingress") or ()
    if service["spec"]["type"] == "LoadBalancer" and given:
        return f"http://{given[0].get('hostname') or given[0]['ip']}:{port['port']}"
    if service["spec"]["type"] == "NodePort":
        return f"http://{node}:{port['nodePort']}"
    return f"http://{service['metadata']['name']}.{service['metadata']['namespace']}.svc:{port['port']}"


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except ClusterError as error:
        raise GatewayError(f"cannot {what}: {error}", retryable=error.retryable) from error
