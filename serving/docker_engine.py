"""A container engine over its HTTP interface: Docker's own, and Podman's, which speaks the same.

Where the two differ is told here and nowhere else:

- Podman before 5 cannot change how a container is restarted once it is there, and nobody starts its containers after
  the machine does. There the controller alone starts what died.
- Podman lists images by their full names: ``docker.io/`` stands before those without a registry. It fails to list any
  while one of them is being removed.
- Podman 4 mostly does not tell that the system ended a container for want of memory.
- Podman tells the digest of a pushed image in its words alone.
- Podman 4 loses lines that were written in parts where it is asked for the last ones only, so it is asked for all.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import docker
from docker.errors import ImageNotFound

from serving.engine_errors import CLIENTS, EngineError, absent, asked_of_registry, last_of, patiently, translated
from serving.image_context import USER, Context

SECONDS = 60.0
"""How long one answer of an engine may take, unless it is asked for something that takes its time."""
_OLDEST = "1.41"
"""Of the interface, in which an engine is asked for its own version of it: Docker 20.10, Podman 4."""
_BUILD_SECONDS = 3600
"""The same of a build, between two of its words."""
LABEL = "promote.installation"
"""On everything of ours in an engine: the name of the installation that it belongs to."""

_DIGEST = re.compile(r"digest: (sha256:[0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Container:
    """One container as an engine lists it."""

    id: str
    name: str
    labels: Mapping[str, str] = field(hash=False)
    running: bool


@dataclass(frozen=True, slots=True)
class Ending:
    """How a container came to its end, or how often it was started again after one."""

    code: int
    memory: bool
    """Whether the system ended it, or a process of it, for want of memory."""
    error: str
    """Why it could not be started at all."""
    restarts: int
    """How often the engine started it again by itself."""


@dataclass(frozen=True, slots=True)
class Image:
    """One image as an engine lists it."""

    id: str
    names: tuple[str, ...]
    """Its tags, and its names by the digests that registries gave it."""
    labels: Mapping[str, str] = field(hash=False)
    created: float
    """Seconds since the epoch."""
    size: int
    """Bytes, with those of whatever it stands on."""


class Engine:
    """One engine. Every method raises `EngineError`; what is gone already needs no removing."""

    installs = True

    def __init__(self, url: str, installation: str) -> None:
        """`url` as in DOCKER_HOST; whatever is made or listed belongs to `installation`."""
        self.url = url
        self.installation = installation

    @cached_property
    def api(self) -> docker.APIClient:
        with translated(f"reach the engine at {self.url}"):
            with closing(docker.APIClient(base_url=self.url, version=_OLDEST, timeout=SECONDS)) as first:
                version = first.version(api_version=False)["ApiVersion"]
            return docker.APIClient(base_url=self.url, version=version, timeout=SECONDS)

    def close(self) -> None:
        """Let the connections go."""
        if "api" in self.__dict__:
            self.api.close()

    @cached_property
    def podman(self) -> bool:
        """Whether it is Podman."""
        with translated("ask the engine what it is"):
            told = self.api.version()
        return any("podman" in part["Name"].lower() for part in told.get("Components") or ())

    @cached_property
    def architecture(self) -> str:
        """Of the machine that runs the containers, as Go names it: ``amd64``, ``arm64``."""
        with translated("ask the engine what it runs on"):
            return str(self.api.version()["Arch"])

    def containers(self, **labels: str) -> list[Container]:
        """Every container of the installation that has these labels besides, dead ones too, in one call."""
        wanted = [f"{LABEL}={self.installation}", *(f"promote.{name}={value}" for name, value in labels.items())]
        with translated("list the containers"):
            found = self.api.containers(all=True, filters={"label": wanted})
        return [_container(one) for one in found]

    def start(self, name: str, image: str, **options: Any) -> str:
        """Make a container and start it; its id. `options`: see `_create`. One that does not start is removed."""
        with translated(f"start {name}"):
            made = self._create(name, image, **options)
            try:
                self.api.start(made)
            except CLIENTS:
                self.api.remove_container(made, force=True)
                raise
        return made

    def _create(
        self,
        name: str,
        image: str,
        *,
        network: str,
        aliases: Sequence[str] = (),
        labels: Mapping[str, str],
        command: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
        ports: Sequence[int] = (),
        user: str | None = None,
        stop_seconds: int | None = None,
        **host: Any,
    ) -> str:
        api = self.api
        networking = api.create_networking_config({network: api.create_endpoint_config(aliases=list(aliases))})
        made = api.create_container(
            image,
            command=list(command) if command is not None else None,
            name=name,
            labels={LABEL: self.installation, **{f"promote.{key}": value for key, value in labels.items()}},
            environment=dict(environment or {}),
            ports=list(ports) or None,
            user=user,
            stop_signal="SIGTERM",
            stop_timeout=stop_seconds,
            host_config=api.create_host_config(network_mode=network, **host),
            networking_config=networking,
        )
        return str(made["Id"])

    def keep(self, container: str) -> None:
        """From now on the engine starts it again when it dies, and after it was itself started; see the module."""
        if self.podman:
            return
        with translated("change how a container is restarted"):
            self.api.update_container(container, restart_policy={"Name": "unless-stopped"})

    def ending(self, container: str) -> Ending:
        with translated("ask how a container ended"):
            told = self.api.inspect_container(container)
        state = told["State"]
        return Ending(state["ExitCode"], state["OOMKilled"], state.get("Error") or "", told.get("RestartCount") or 0)

    def rename(self, container: str, name: str) -> None:
        with translated(f"rename {name}"):
            self.api.rename(container, name)

    def stop(self, container: str, seconds: float) -> None:
        """SIGTERM, and SIGKILL after `seconds`; returns once it has ended."""
        with translated("stop a container"), absent():
            self.api.stop(container, timeout=round(seconds))

    def remove(self, container: str) -> None:
        """Gone, whether it has ended or not."""
        with translated("remove a container"), absent():
            self.api.remove_container(container, force=True, v=True)

    def logs(self, container: str, lines: int) -> tuple[str, ...]:
        with translated("read the log of a container"):
            if not self.podman:
                said: bytes = self.api.logs(container, tail=lines)
                return tuple(said.decode(errors="replace").splitlines())
            kept, rest = deque[bytes](maxlen=lines), b""
            for part in self.api.logs(container, stream=True, follow=False):
                *whole, rest = (rest + part).split(b"\n")
                kept.extend(whole)
        return tuple(line.decode(errors="replace") for line in (*kept, rest) if line)

    def network(self, name: str) -> None:
        """See that the installation's network is there."""
        with translated(f"make the network {name}"):
            if any(one["Name"] == name for one in self.api.networks(names=[name])):
                return
            self.api.create_network(name, driver="bridge", check_duplicate=True, labels={LABEL: self.installation})

    def image(self, reference: str) -> str | None:
        """The id of the image that a tag, a digest or an id names; None where it is not in the engine."""
        with translated(f"look for the image {reference}"):
            try:
                return str(self.api.inspect_image(reference)["Id"])
            except ImageNotFound:
                return None

    def pull(self, reference: str) -> str:
        """Have the image from its registry; its id."""
        with asked_of_registry("pull", reference), translated(f"pull {reference}"):
            repository, tag = split(reference)
            self.api.reload_config()
            last_of(self.api.pull(repository, tag=tag, stream=True, decode=True), _say_nothing)
            return str(self.api.inspect_image(reference)["Id"])

    def build(self, context: Context, tag: str, tell: Callable[[str], None]) -> str:
        """Build the image that `tag` names; its id. `tell` hears what the engine is at."""
        with translated(f"build {tag}"), tempfile.TemporaryFile() as file:
            context.write(file)
            file.seek(0)
            said = self.api.build(
                fileobj=file,
                custom_context=True,
                tag=tag,
                rm=True,
                forcerm=True,
                decode=True,
                timeout=_BUILD_SECONDS,
                labels=dict(context.labels),
            )
            last_of(said, tell)
            return str(self.api.inspect_image(tag)["Id"])

    def push(self, reference: str) -> str:
        """Send the image to its registry; the digest that the registry gave it."""
        with asked_of_registry("push", reference), translated(f"push {reference}"):
            repository, tag = split(reference)
            self.api.reload_config()
            told = last_of(self.api.push(repository, tag=tag, stream=True, decode=True), _say_nothing)
        for one in reversed(told):
            if digest := _DIGEST.search(str(one.get("status") or "")):
                return digest[1]
        raise EngineError(f"{repository} took the image and told no digest", retryable=False)

    def labels(self, reference: str) -> Mapping[str, str]:
        """What the image says of itself; it is had from its registry where it is not here."""
        if self.image(reference) is None:
            self.pull(reference)
        with translated(f"look at the image {reference}"):
            return dict(self.api.inspect_image(reference)["Config"]["Labels"] or {})

    def in_registry(self, reference: str) -> bool:
        """Whether the image's registry has it; one that is named by its id alone is of none."""
        if reference.startswith("sha256:"):
            return False
        with translated(f"ask for {reference}"):
            try:
                self.api.inspect_distribution(reference)
            except ImageNotFound:
                return False
        return True

    def images(self, repository: str) -> Mapping[str, str]:
        """Tags of every image below the repository's name, and the image's id."""
        named = ((name, image.id) for image in self.listed() for name in image.names if "@" not in name)
        return {tag: image for tag, image in named if tag.startswith(f"{repository}/")}

    def listed(self) -> list[Image]:
        """Every image of the engine that stands for itself, whoever's it is."""
        return [_image(one) for one in patiently(self._images)]

    def _images(self) -> list[dict[str, Any]]:
        with translated("list the images"):
            return list(self.api.images())

    def layers(self, image: str) -> tuple[str, ...] | None:
        """Digests of its layers, the lowest first; None where it is gone."""
        with translated("look at an image"):
            try:
                return tuple(self.api.inspect_image(image)["RootFS"]["Layers"])
            except ImageNotFound:
                return None

    def users(self) -> dict[str, str]:
        """Of every image that has containers, anybody's and dead ones too, the name of one of them."""
        with translated("list the containers"):
            found = self.api.containers(all=True)
        return {one["ImageID"]: one["Names"][0].lstrip("/") for one in found}

    def remove_image(self, reference: str) -> None:
        """Take the name away, and the image with its last name. One that runs is refused."""
        with translated(f"remove the image {reference}"), absent():
            self.api.remove_image(reference)

    def purge(self, repository: str) -> None:
        """Remove every container, network and image of the installation."""
        for container in self.containers():
            self.remove(container.id)
        with translated("remove the networks"):
            for network in self.api.networks(filters={"label": [f"{LABEL}={self.installation}"]}):
                self.api.remove_network(network["Id"])
        for tag in self.images(repository):
            self.remove_image(tag)


CONFINED: Mapping[str, Any] = {
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "pids_limit": 1024,
}
"""What no container of ours may do."""


def runs_as() -> str:
    """The user of containers that write to a folder of this machine: the controller's own, and never root."""
    return f"{os.getuid()}:{os.getgid()}" if os.getuid() else USER


def give(folder: Path) -> None:
    """Have the containers' user write there, where the controller is root."""
    if not os.getuid():
        user, group = (int(part) for part in USER.split(":"))
        for path in (folder, *folder.rglob("*")):
            os.chown(path, user, group)


def split(reference: str) -> tuple[str, str]:
    """Repository, and tag or digest."""
    if "@" in reference:
        repository, _, digest = reference.partition("@")
        return repository, digest
    repository, _, tag = reference.rpartition(":")
    return (repository, tag) if repository and "/" not in tag else (reference, "latest")


def _say_nothing(_: str) -> None:
    """For work of which nobody hears."""


def _container(told: Mapping[str, Any]) -> Container:
    return Container(
        id=told["Id"],
        name=told["Names"][0].lstrip("/"),
        labels={key.removeprefix("promote."): value for key, value in (told.get("Labels") or {}).items()},
        running=told["State"] == "running",
    )


def _image(told: Mapping[str, Any]) -> Image:
    names = [*(told.get("RepoTags") or ()), *(told.get("RepoDigests") or ())]
    known = tuple(name.removeprefix("docker.io/") for name in names if not name.startswith("<none>"))
    return Image(told["Id"], known, told.get("Labels") or {}, float(told["Created"]), told["Size"])
