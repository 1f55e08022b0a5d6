"""A gateway that somebody else runs: an implementation of the Gateway API, or a mesh.

Nothing of it is started, ended or looked at here but what it says of our routes.
"""

from __future__ import annotations

from serving.cluster import ClusterError
from serving.envoy import GatewaySettings
from serving.gateway import GatewayError
from serving.httproute_router import HttpRouteRouter
from serving.router import RouterError


class ForeignGateway:
    """`TrafficGateway` over routes at somebody else's."""

    def __init__(self, router: HttpRouteRouter, settings: GatewaySettings, url: str) -> None:
        """`url`: where clients reach it."""
        self.settings = settings
        self._router = router
        self._url = url

    @property
    def url(self) -> str:
        """As it was told: a Gateway may have many addresses."""
        return self._url

    def ensure(self) -> None:
        """See that the cluster knows routes at all."""
        try:
            _ = self._router.kind
        except ClusterError as error:
            raise GatewayError(f"cannot use router httproute: {error}", retryable=error.retryable) from error

    def leave(self) -> None:
        """It needs nobody."""

    def stop(self, drain_seconds: float = 30.0) -> None:  # noqa: ARG002 - what is in flight is the gateway's
        """Take every route away; the gateway goes on for others."""
        try:
            self._router.clear()
        except RouterError as error:
            raise GatewayError(f"cannot take the routes away: {error}", retryable=error.retryable) from error
