"""What stands before the revisions of a cluster: our own gateway, or routes at another one. A part of the wiring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from monitoring.figure_blocks import Servers
from monitoring.log_file import Log
from monitoring.remote_log import RemoteLogs
from pipelines.platforms import gateway_settings
from pipelines.settings import Settings
from serving.cluster import CONFIG_MAPS, Cluster
from serving.cluster_access import Access
from serving.cluster_gateway import ClusterGateway, GatewayPods
from serving.cluster_servers import ModelServers
from serving.cluster_tables import ConfigMapTables
from serving.cluster_view import View, Watched
from serving.envoy_router import EnvoyRouter
from serving.foreign_gateway import ForeignGateway
from serving.gateway import TrafficGateway
from serving.gateway_api import Parent, RouteSettings
from serving.gateway_objects import GatewayObjects, name_of, tables_of
from serving.httproute_router import HttpRouteRouter
from serving.pod_parts import INSTALLATION
from serving.router import TrafficRouter

_TAKE_SECONDS = 15.0
"""How long the gateway's pods may take to follow a table: usually one or two, by way of their kubelets."""


@dataclass(frozen=True)
class Place:
    """The cluster as a front sees it; the view is made when somebody looks."""

    settings: Settings
    cluster: Cluster
    view: Callable[[], View]
    access: Callable[[], Access]

    @property
    def selector(self) -> str:
        """Of the installation's labels."""
        return f"{INSTALLATION}={self.settings.installation}"


class Front(Protocol):
    """A gateway and who tells it the weights."""

    @property
    def gateway(self) -> TrafficGateway: ...

    @property
    def router(self) -> TrafficRouter: ...

    def logs(self) -> Sequence[Log]:
        """See `Platform`."""
        ...

    def servers(self) -> Servers | None:
        """See `Platform`."""
        ...

    def purge(self) -> None:
        """Remove what is left of it."""
        ...

    def close(self) -> None:
        """Let connections go."""
        ...


class OwnFront:
    """Envoys of our own."""

    def __init__(self, place: Place, objects: Callable[[], GatewayObjects]) -> None:
        self._place, self._objects = place, objects

    @cached_property
    def gateway(self) -> ClusterGateway:
        settings = self._place.settings
        name = name_of(settings.installation)
        return ClusterGateway(self._place.cluster, self._place.view(), gateway_settings(settings), name, self._objects)

    @cached_property
    def router(self) -> EnvoyRouter:
        name = tables_of(name_of(self._place.settings.installation))
        tables = ConfigMapTables(self._place.cluster, self._config_maps, name, self._pods.all)
        return EnvoyRouter(tables, self.gateway.settings, self._pods.admins, _TAKE_SECONDS, silent_are_gone=False)

    def logs(self) -> Sequence[Log]:
        """One for each replica, and one for that which takes the place of another."""
        return RemoteLogs(self._place.settings.gateway_replicas + 1, self._pods.asks).logs

    def servers(self) -> None:
        """Its log tells more."""

    def purge(self) -> None:
        self.gateway.purge()

    def close(self) -> None:
        if "_config_maps" in self.__dict__:
            self._config_maps.close()

    @cached_property
    def _pods(self) -> GatewayPods:
        return GatewayPods(self._place.view(), self._place.access(), lambda: self.gateway.key)

    @cached_property
    def _config_maps(self) -> Watched:
        return Watched(self._place.cluster, CONFIG_MAPS, labelSelector=self._place.selector)


class ForeignFront:
    """Routes at a Gateway of the cluster."""

    def __init__(self, place: Place) -> None:
        self._place = place
        settings = place.settings
        parent = Parent.parse(str(settings.gateway_parent), settings.namespace)
        routes = RouteSettings(settings.namespace, settings.installation, parent, settings.gateway_hostnames)
        self.router = HttpRouteRouter(place.cluster, routes, settings.route_settle_seconds)
        self.gateway = ForeignGateway(self.router, gateway_settings(settings), settings.gateway_address)

    def logs(self) -> Sequence[Log]:
        """None of ours."""
        return ()

    def servers(self) -> ModelServers:
        return ModelServers(self._place.view(), self._place.access())

    def purge(self) -> None:
        """Its routes are gone once it was stopped."""

    def close(self) -> None:
        self.router.close()
