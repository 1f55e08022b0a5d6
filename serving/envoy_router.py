"""Traffic through Envoy: routes are tables that Envoy watches, and what is in force is what Envoy says.

All models' routes stand in the two tables and are read back from them, so a controller that starts again
loses none. Clusters are added before the routes that need them and taken away after: at no moment does a
route in force name a cluster that is not there. Where Envoy is not running the tables are written all the
same, and it serves them when it comes back. Where several Envoys follow the tables, a route is in force once
all of them say so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from serving.envoy import (
    CLUSTERS_FILE,
    ROUTES_FILE,
    TABLE,
    Config,
    GatewaySettings,
    cluster_table,
    route_table,
    routes_of,
)
from serving.envoy_admin import AdminError, EnvoyAdmin, admin_at
from serving.envoy_tables import FileTables, Tables
from serving.gateway import GatewayFiles
from serving.router import Route, RouterError

TAKE_SECONDS = 5.0
"""How long Envoy may take to follow a table."""
VERSIONS = {
    CLUSTERS_FILE: "cluster_manager.cds.version_text",
    ROUTES_FILE: f"http.gateway.rds.{TABLE}.version_text",
}
"""Statistics that say which version of a table Envoy has taken."""

Replicas = Callable[[], Sequence[EnvoyAdmin]]
"""The Envoys that take requests, by their administrations. Raises `RouterError`."""


class EnvoyRouter:
    """`TrafficRouter` over the Envoys that follow some tables."""

    def __init__(
        self,
        tables: Tables,
        settings: GatewaySettings,
        replicas: Replicas,
        take_seconds: float = TAKE_SECONDS,
        *,
        silent_are_gone: bool = True,
    ) -> None:
        """`silent_are_gone`: whether a replica that does not answer takes no requests either."""
        self._tables = tables
        self._settings = settings
        self._replicas = replicas
        self._take_seconds = take_seconds
        self._silent_are_gone = silent_are_gone

    def set_weights(self, route: Route) -> None:
        with self._tables.alone():
            before = self._wanted()
            known = before[route.model].endpoints if route.model in before else {}
            self._bring({**before, route.model: route}, route.endpoints.keys() - known.keys())

    def get_weights(self) -> Mapping[str, Route]:
        found = [_in_force(replica) for replica in self._replicas()]
        if not found:
            raise RouterError("no Envoy takes requests", retryable=True)
        return found[0] if len(found) == 1 else _by_all(found, self._wanted())

    def remove(self, model: str) -> None:
        with self._tables.alone():
            self._bring({name: route for name, route in self._wanted().items() if name != model})

    def _bring(self, wanted: Mapping[str, Route], fresh: Collection[str] = ()) -> None:
        """Write what is wanted in an order in which every moment is sound; repeating it writes nothing.

        `fresh`: revisions that got no requests of the model before.
        """
        clusters = cluster_table(wanted.values(), self._settings)
        needed = {cluster["name"] for cluster in clusters["resources"]}
        leaving = [c for c in self._resources(CLUSTERS_FILE) if c["name"] not in needed]
        if self._put(CLUSTERS_FILE, cluster_table(wanted.values(), self._settings, leaving)):
            self._await_found(fresh)
        in_force = self._put(ROUTES_FILE, route_table(wanted.values(), self._settings))
        if leaving and in_force:
            self._put(CLUSTERS_FILE, clusters)

    def _put(self, name: str, table: Config) -> bool:
        """Replace a table and see that Envoy takes it; what it refuses is undone, for the sake of the other models.

        False where there is no Envoy that could take it.
        """
        before = self._tables.read(name)
        self._tables.write(name, table)
        try:
            return self._follow(name, table)
        except RouterError:
            if before is not None:
                self._tables.write(name, before)
            raise

    def _await_found(self, revisions: Collection[str]) -> None:
        """Wait until every Envoy has found the revisions by their names, which may be later than they are ready."""
        deadline = time.monotonic() + self._take_seconds
        waiting = [(replica, revision) for replica in self._replicas() for revision in revisions]
        while waiting := [(replica, revision) for replica, revision in waiting if _unknown(replica, revision)]:
            if time.monotonic() > deadline:
                replica, revision = waiting[0]
                raise RouterError(f"Envoy at {replica.name} finds no address of {revision}", retryable=True)
            time.sleep(0.05)

    def _wanted(self) -> dict[str, Route]:
        return routes_of(self._resources(ROUTES_FILE), self._resources(CLUSTERS_FILE))

    def _resources(self, name: str) -> list[Config]:
        table = self._tables.read(name)
        return [] if table is None else list(table["resources"])

    def _follow(self, name: str, table: Config) -> bool:
        """Wait until every Envoy has taken `table`; False where there is none that could."""
        deadline, waiting, taken = time.monotonic() + self._take_seconds, [*self._replicas()], 0
        while waiting and time.monotonic() < deadline:
            for replica in tuple(waiting):
                says = _version(replica, name)
                if says == table["version_info"] or (says is None and self._silent_are_gone):
                    waiting.remove(replica)
                    taken += says is not None
            time.sleep(0.01 if waiting else 0.0)
        if waiting:
            said = f"has not taken the new {name} in {self._take_seconds:.0f} s: {self._tables.last_words()}"
            raise RouterError(f"Envoy at {waiting[0].name} {said}", retryable=True)
        return taken > 0


def router_at(home: Path, settings: GatewaySettings, admin: EnvoyAdmin | None = None) -> EnvoyRouter:
    """Over the one Envoy that `Gateway` runs below `home`; `admin`: where that is not at the settings' port here."""
    replica = admin or admin_at(settings.admin_port)
    return EnvoyRouter(FileTables(GatewayFiles(home)), settings, lambda: [replica])


def _version(replica: EnvoyAdmin, name: str) -> str | None:
    """Of the table that it has taken; None where it does not answer."""
    try:
        return replica.stat(VERSIONS[name], "TextReadouts")
    except AdminError:
        return None


def _unknown(replica: EnvoyAdmin, revision: str) -> bool:
    """Whether it says that it knows of no address."""
    try:
        return replica.stat(f"cluster.{revision}.membership_total") == "0"
    except AdminError:
        return False


def _in_force(replica: EnvoyAdmin) -> dict[str, Route]:
    try:
        sections = replica.config()
    except AdminError as error:
        raise RouterError(str(error), retryable=True) from error
    return routes_of(
        _dynamic(sections, "RoutesConfigDump", "dynamic_route_configs", "route_config"),
        _dynamic(sections, "ClustersConfigDump", "dynamic_active_clusters", "cluster"),
    )


def _dynamic(sections: Mapping[str, Any], section: str, entries: str, kind: str) -> list[Config]:
    return [entry[kind] for entry in sections[section].get(entries, ())]


def _by_all(found: Sequence[Mapping[str, Route]], wanted: Mapping[str, Route]) -> dict[str, Route]:
    """The routes that every Envoy has; where they differ, one that is not the `wanted` one: it is not in force yet."""
    everywhere = set.intersection(*(set(routes) for routes in found))
    return {model: _one_of([routes[model] for routes in found], wanted.get(model)) for model in everywhere}


def _one_of(routes: Sequence[Route], wanted: Route | None) -> Route:
    return next((route for route in routes if route != wanted), routes[0])
