"""The ways from a controller to pods: straight to them from inside the cluster, else through the cluster's own server.

The server's way needs no port of a node and no rule of a network; it takes the right to `pods/proxy` and
`services/proxy`, and no connection of its own.
"""

from __future__ import annotations

import http.client
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Protocol, TypeAlias

import httpx

from serving.cluster import PODS, SERVICES, Cluster, ClusterError

Ask: TypeAlias = Callable[[str, str], tuple[int, Mapping[str, str], bytes]]
"""Sends a method and a path to a pod: status, headers by their small names, body. Raises `OSError`."""

_SECONDS = 5.0
"""Longest wait for an answer of a gateway's pod."""
_CLIENT_SECONDS = 120.0
"""Longest wait for an answer of a revision, where whoever asks gives no other time."""
_HOP = {"connection", "host", "keep-alive", "proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade"}
"""Headers between two ends of one connection."""


class Access(Protocol):
    """A way to the pods of one namespace."""

    def pod(self, name: str, address: str, port: int, headers: Mapping[str, str]) -> Ask:
        """How a pod is asked; `headers` go with every request."""
        ...

    def client(self) -> httpx.Client:
        """What reaches revisions at their addresses, ``http://<service>.<namespace>.svc:<port>``."""
        ...


class Inside:
    """Straight to pods and Services, by the cluster's network and names."""

    def pod(self, name: str, address: str, port: int, headers: Mapping[str, str]) -> Ask:
        """See `Access`."""

        def ask(method: str, path: str) -> tuple[int, Mapping[str, str], bytes]:
            try:
                with closing(http.client.HTTPConnection(address, port, timeout=_SECONDS)) as connection:
                    connection.request(method, path, headers=dict(headers))
                    answer = connection.getresponse()
                    return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()
            except (OSError, http.client.HTTPException) as error:
                raise OSError(f"pod {name} at {address}:{port}: {error}") from error

        return ask

    def client(self) -> httpx.Client:
        """See `Access`."""
        return httpx.Client(trust_env=False)


class Outside:
    """Through the cluster's own server."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def pod(self, name: str, address: str, port: int, headers: Mapping[str, str]) -> Ask:  # noqa: ARG002
        """See `Access`."""

        def ask(method: str, path: str) -> tuple[int, Mapping[str, str], bytes]:
            try:
                return self._cluster.through(PODS, f"{name}:{port}", method, path, headers, b"", _SECONDS)
            except ClusterError as error:
                raise OSError(str(error)) from error

        return ask

    def client(self) -> httpx.Client:
        """See `Access`."""
        return httpx.Client(transport=ThroughCluster(self._cluster), trust_env=False)


class ThroughCluster(httpx.BaseTransport):
    """Sends requests for revisions' addresses by way of the cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Raises `httpx.ConnectError` where the cluster reaches nobody."""
        service, _, namespace = request.url.host.partition(".")
        if namespace != f"{self._cluster.namespace}.svc":
            words = f"{request.url.host} is no Service of namespace {self._cluster.namespace}"
            raise httpx.UnsupportedProtocol(words, request=request)
        headers = {name: value for name, value in request.headers.items() if name not in _HOP}
        seconds = request.extensions.get("timeout", {}).get("read") or _CLIENT_SECONDS
        where, path = f"{service}:{request.url.port or 80}", request.url.raw_path.decode("ascii")
        try:
            status, told, body = self._cluster.through(
                SERVICES, where, request.method, path, headers, request.read(), seconds
            )
        except ClusterError as error:
            raise httpx.ConnectError(str(error), request=request) from error
        kept = {name: value for name, value in told.items() if name not in _HOP}
        return httpx.Response(status, headers=kept, content=body, request=request)
