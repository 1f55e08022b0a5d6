"""What a revision is made of, and the port to whoever makes it.

The build context is data and its digest names the image, so that the same version and settings are never
built twice. `build` starts the work and returns; `find` tells how far it is.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from registry_hooks.model_version import ModelVersion

_SOURCE = Path(__file__).parent


class ImageError(Exception):
    """An image could not be asked for or looked up; `retryable` tells whether trying again can help."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """Which image is wanted."""

    version: ModelVersion
    source: str
    """MLflow's artifact location of the version."""
    server: str
    """Digest of the model server's own files, so that a new server makes a new image."""

    @property
    def key(self) -> str:
        """Names the request: the same version, source and server always give the same key."""
        return hashlib.sha256(repr((self.version, self.source, self.server)).encode()).hexdigest()[:20]


class BuildState(StrEnum):
    """How far a build is."""

    MISSING = "missing"
    """Never asked for, or lost."""
    BUILDING = "building"
    """Under way; `ImageStatus.detail` says at what."""
    READY = "ready"
    """Done; `ImageStatus.image` is its digest."""
    FAILED = "failed"
    """Cannot be built; `ImageStatus.detail` is the explanation, for example the resolver's."""


@dataclass(frozen=True, slots=True)
class ImageStatus:
    """How far one image is."""

    state: BuildState
    image: str | None = None
    """Digest, once ready."""
    detail: str = ""
    lock: str | None = None
    """Digest of the dependency lock, once known."""


class ImageBuilder(Protocol):
    """Makes images. Every method raises `ImageError`."""

    def find(self, request: ImageRequest) -> ImageStatus:
        """How far the image for `request` is."""
        ...

    def build(self, request: ImageRequest) -> None:
        """Start making the image, unless it is there or under way; a failed build is tried again."""
        ...


def digest_of(folder: Path) -> str:
    """SHA-256 over names and contents of every file below `folder`, independent of times and order."""
    return _digest(folder, (path for path in folder.rglob("*") if path.is_file()))


def server_digest() -> str:
    """Digest of the model server's own files, as `ImageRequest` wants it."""
    return _digest(_SOURCE.parent, server_files())


def server_files() -> tuple[Path, ...]:
    """The files that the model server consists of: all of ours that is in an image."""
    runtime = (path for path in (_SOURCE / "runtime").rglob("*.py"))
    return (_SOURCE / "__init__.py", _SOURCE / "prediction_log.py", *sorted(runtime))


def copy_server(destination: Path) -> None:
    """Copy the model server below `destination`, so that it runs from there without our package."""
    for path in server_files():
        copy = destination / path.relative_to(_SOURCE.parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def _digest(root: Path, files: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for path in sorted(files):
        if "__pycache__" not in path.parts:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            total.update(f"{path.relative_to(root).as_posix()}\0{content}\n".encode())
    return total.hexdigest()
