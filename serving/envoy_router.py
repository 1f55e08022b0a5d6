"""Traffic through Envoy: routes are files that Envoy watches, and what is in force is what Envoy says.

All models' routes stand in the two files and are read back from them, so a controller that starts again
loses none. Clusters are added before the routes that need them and taken away after: at no moment does a
route in force name a cluster that is not there. Where Envoy is not running the files are written all the
same, and it serves them when it comes back.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from serving.envoy import TABLE, Config, GatewaySettings, cluster_table, route_table, routes_of
from serving.envoy_admin import AdminError, EnvoyAdmin
from serving.gateway import GatewayFiles
from serving.router import Route, RouterError

TAKE_SECONDS = 5.0
"""How long Envoy may take to follow a file."""
CLUSTERS_VERSION = "cluster_manager.cds.version_text"
ROUTES_VERSION = f"http.gateway.rds.{TABLE}.version_text"


class EnvoyRouter:
    """`TrafficRouter` over one Envoy that `Gateway` runs below the same `home`."""

    def __init__(self, home: Path, settings: GatewaySettings) -> None:
        self._files = GatewayFiles(home)
        self._settings = settings
        self._admin = EnvoyAdmin(settings.admin_port)

    def set_weights(self, route: Route) -> None:
        with self._locked():
            self._bring({**self._wanted(), route.model: route})

    def get_weights(self) -> Mapping[str, Route]:
        try:
            sections = self._admin.config()
        except AdminError as error:
            raise RouterError(str(error), retryable=True) from error
        tables = [e["route_config"] for e in sections["RoutesConfigDump"].get("dynamic_route_configs", ())]
        clusters = [e["cluster"] for e in sections["ClustersConfigDump"].get("dynamic_active_clusters", ())]
        return routes_of(tables, clusters)

    def remove(self, model: str) -> None:
        with self._locked():
            self._bring({name: route for name, route in self._wanted().items() if name != model})

    def _bring(self, wanted: Mapping[str, Route]) -> None:
        """Write what is wanted in an order in which every moment is sound; repeating it writes nothing."""
        clusters = cluster_table(wanted.values(), self._settings)
        needed = {cluster["name"] for cluster in clusters["resources"]}
        leaving = [c for c in _resources(self._files.clusters) if c["name"] not in needed]
        both = cluster_table(wanted.values(), self._settings, leaving)
        self._put(self._files.clusters, both, CLUSTERS_VERSION)
        in_force = self._put(self._files.routes, route_table(wanted.values(), self._settings), ROUTES_VERSION)
        if leaving and in_force:
            self._put(self._files.clusters, clusters, CLUSTERS_VERSION)

    def _put(self, path: Path, table: Config, version: str) -> bool:
        """Replace a file and see that Envoy takes it; what it refuses is undone, for the sake of the other models.

        False where there is no Envoy that could take it.
        """
        before = path.read_text() if path.exists() else None
        _replace(path, json.dumps(table))
        try:
            return self._follow(version, table)
        except RouterError:
            if before is not None:
                _replace(path, before)
            raise

    def _wanted(self) -> dict[str, Route]:
        return routes_of(_resources(self._files.routes), _resources(self._files.clusters))

    def _follow(self, version: str, table: Config) -> bool:
        """Wait until Envoy has taken `table`; False where there is no Envoy that could."""
        deadline = time.monotonic() + TAKE_SECONDS
        while time.monotonic() < deadline:
            try:
                if self._admin.stat(version, "TextReadouts") == table["version_info"]:
                    return True
            except AdminError:
                return False
            time.sleep(0.01)
        said = _last_line(self._files.output)
        raise RouterError(f"Envoy has not taken the new {version} in {TAKE_SECONDS:.0f} s: {said}", retryable=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time, of any process; `OSError` and broken files become `RouterError`."""
        try:
            self._files.tables.mkdir(parents=True, exist_ok=True)
            with self._files.lock.open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise RouterError(f"routes cannot be written: {error}", retryable=True) from error
        except (ValueError, KeyError) as error:
            raise RouterError(f"{self._files.tables} holds a broken file: {error!r}", retryable=False) from error


def _resources(path: Path) -> list[Config]:
    try:
        resources: list[Config] = json.loads(path.read_text())["resources"]
    except FileNotFoundError:
        return []
    return resources


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return lines[-1] if lines else "it says nothing"


def _replace(path: Path, content: str) -> None:
    """Put `content` in place at once and durably, unless it stands there already."""
    if path.exists() and path.read_text() == content:
        return
    fresh = path.with_suffix(".new")
    with fresh.open("w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
