"""One Envoy in front of all models, started and supervised by us, as a process here or in a container.

Envoy outlives the controller, which finds it again; while a controller runs, a small thread starts an Envoy that died.
What Envoy serves stands in files that nobody but `EnvoyRouter` writes, so an Envoy that comes back serves the same
routes with the same weights.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from serving.envoy import CLUSTERS_FILE, ROUTES_FILE, Config, GatewaySettings, cluster_table, route_table
from serving.envoy_admin import AdminError, EnvoyAdmin

logger = logging.getLogger(__name__)

START_SECONDS = 20.0
"""An Envoy that does not answer in this time has not started."""
WATCH_SECONDS = 0.5
"""How often the supervising thread looks whether Envoy lives."""
FLUSH_MILLISECONDS = 100
"""How long Envoy may keep a line of the access log to itself."""
END_SECONDS = 5.0
"""How long an Envoy without requests may take to end."""


class GatewayError(Exception):
    """Envoy could not be started or stopped; `retryable` tells whether trying again can help."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


class TrafficGateway(Protocol):
    """What clients send their requests to, whoever runs it. Every method raises `GatewayError`."""

    settings: GatewaySettings

    @property
    def url(self) -> str:
        """Where clients reach it."""
        ...

    def ensure(self) -> None:
        """See that it runs with these settings; returns when it takes requests. May be called at any time."""
        ...

    def leave(self) -> None:
        """Leave it running for the next controller."""
        ...

    def stop(self, drain_seconds: float = 30.0) -> None:
        """Take no new connection, let requests in flight finish, then end it."""
        ...


class GatewayFiles:
    """Where everything about one gateway lies, below its `home`."""

    def __init__(self, home: Path) -> None:
        self.home = home.resolve()
        self.bootstrap = self.home / "bootstrap.json"
        self.tables = self.home / "tables"
        """Watched by Envoy: routes and clusters."""
        self.routes = self.tables / ROUTES_FILE
        self.clusters = self.tables / CLUSTERS_FILE
        self.access_log = self.home / "access.log"
        self.output = self.home / "envoy.log"
        self.record = self.home / "envoy.json"
        """The running Envoy's pid and start time."""
        self.lock = self.home / "lock"


class EnvoyHost(Protocol):
    """Where an Envoy runs, at most one for each of its homes. Every method raises `GatewayError`."""

    def bootstrap(self, files: GatewayFiles, settings: GatewaySettings) -> Config:
        """What Envoy starts with there."""
        ...

    def alive(self, files: GatewayFiles) -> bool:
        """Whether it runs, whoever started it."""
        ...

    def start(self, files: GatewayFiles, settings: GatewaySettings) -> None:
        """Start it with `files.bootstrap`, and do not wait."""
        ...

    def end(self, files: GatewayFiles, seconds: float) -> None:
        """End it, by force after so many seconds; one that does not run is fine."""
        ...

    def last_words(self, files: GatewayFiles) -> str:
        """What it wrote last."""
        ...


def envoy_options(files: GatewayFiles, settings: GatewaySettings) -> list[str]:
    """Options of the program."""
    options = {
        "-c": files.bootstrap,
        "--concurrency": settings.workers,
        "--file-flush-interval-msec": FLUSH_MILLISECONDS,
        "--log-level": "warning",
    }
    return [*(str(part) for option in options.items() for part in option), "--disable-hot-restart"]


class Gateway:
    """`TrafficGateway` that is one Envoy."""

    def __init__(self, home: Path, settings: GatewaySettings, host: EnvoyHost, admin: EnvoyAdmin) -> None:
        self.files = GatewayFiles(home)
        self.settings = settings
        self._host = host
        self._admin = admin
        self._guard = threading.Lock()
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None

    @property
    def url(self) -> str:
        """See `TrafficGateway`."""
        return f"http://{self.settings.host}:{self.settings.port}"

    def ensure(self) -> None:
        """See that Envoy runs with these settings and is watched; returns when it takes requests."""
        with self._guard:
            self._stopping.clear()
            self._run()
            if self._watcher is None or not self._watcher.is_alive():
                self._watcher = threading.Thread(target=self._watch, name="gateway", daemon=True)
                self._watcher.start()

    def running(self) -> bool:
        return self._host.alive(self.files)

    def leave(self) -> None:
        """Stop watching, and leave Envoy running for the next controller."""
        self._stopping.set()
        if self._watcher is not None:
            self._watcher.join()
            self._watcher = None

    def stop(self, drain_seconds: float = 30.0) -> None:
        """Take no new connection, let requests in flight finish, then end Envoy."""
        self.leave()
        with self._guard:
            if self.running():
                self._drain(drain_seconds)
            self._host.end(self.files, END_SECONDS)

    def reopen_log(self) -> None:
        """Make Envoy open its access log anew, after the file was renamed."""
        try:
            self._admin.tell("/reopen_logs")
        except AdminError as error:
            raise GatewayError(str(error), retryable=True) from error

    def _run(self) -> None:
        """Adopt a running Envoy of the same settings, or start one."""
        content = json.dumps(self._host.bootstrap(self.files, self.settings), indent=1)
        if self.running():
            if self.files.bootstrap.read_text() == content:
                return
            self._host.end(self.files, END_SECONDS)
        self._prepare(content)
        self._host.start(self.files, self.settings)
        self._await()

    def _prepare(self, content: str) -> None:
        self.files.tables.mkdir(parents=True, exist_ok=True)
        self.files.bootstrap.write_text(content)
        for path, empty in (
            (self.files.clusters, cluster_table((), self.settings)),
            (self.files.routes, route_table((), self.settings)),
        ):
            if not path.exists():
                path.write_text(json.dumps(empty))
        with self.files.access_log.open("a") as log:
            log.write("\n" + json.dumps({"type": "GatewayStart", "start": time.time()}) + "\n")

    def _await(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while self.running() and time.monotonic() < deadline:
            with suppress(AdminError):
                if self._admin.ready():
                    return
            time.sleep(0.05)
        said = self._host.last_words(self.files)
        self._host.end(self.files, 1.0)
        raise GatewayError(f"Envoy did not start: {said}", retryable=True)

    def _watch(self) -> None:
        while not self._stopping.wait(WATCH_SECONDS):
            try:
                with self._guard:
                    if not self._stopping.is_set() and not self.running():
                        logger.warning("Envoy has died and is started again")
                        self._run()
            except (GatewayError, OSError) as error:
                logger.error("Envoy cannot be started: %s", error)  # noqa: TRY400 - the message says all

    def _drain(self, seconds: float) -> None:
        with suppress(AdminError):
            self._admin.tell("/healthcheck/fail")
            self._admin.tell("/drain_listeners")
            deadline = time.monotonic() + seconds
            while self._admin.stat("http.gateway.downstream_rq_active") not in ("", "0"):
                if time.monotonic() > deadline:
                    return
                time.sleep(0.05)
