"""What a revision is made of, and the port to whoever makes it.

The build context is data and its digest names the image, so that the same version and settings are never
built twice. `build` starts the work and returns; `find` tells how far it is.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from registry_hooks.model_version import ModelVersion
from serving.runtime.model_files import File, digest, listed

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
    files: str = ""
    """SHA-256 of the model's files as they were approved; empty where nobody did."""

    @property
    def key(self) -> str:
        """Names the request: the same version, source, server and files always give the same key."""
        parts = (self.version, self.source, self.server, self.files)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


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
class Proof:
    """How the model of an image is served, and what that rests on."""

    compiled: bool
    """Whether a compiled model answers; else the model itself does."""
    why: str
    """One line: what the compiled model rests on, or why there is none."""
    rows: int = 0
    """On how many rows the compiled model was compared with the model itself."""
    tolerance: float = 0.0
    """How far a score may be off; labels are equal."""
    proof: str = ""
    """SHA-256 of the record of that comparison."""
    model: str = ""
    """SHA-256 of the compiled model."""
    signature: bool = True
    """Whether the model says what its requests look like."""
    data: str = ""
    """One line: how many of those rows are of a data set that the version's run logged, or why none are."""

    def on_gpu(self) -> Proof:
        """The same where the model is served on a GPU, which is never by the compiled one."""
        return replace(self, compiled=False, why="it is asked for on a GPU")

    def __str__(self) -> str:
        return f"compiled, parity on {self.rows:,} rows" if self.compiled else f"native: {self.why}"

    @property
    def warning(self) -> str:
        """What whoever made the model should know; empty where all is well."""
        return "" if self.signature else "the model has no signature, so its requests are not checked"


@dataclass(frozen=True, slots=True)
class Document:
    """Something that was written about an image when it was made."""

    name: str
    """What it is: ``sbom.json``, ``provenance.json``, ``lock.txt``, ``signature.json``."""
    digest: str
    """SHA-256 of its content."""


@dataclass(frozen=True, slots=True)
class ImageStatus:
    """How far one image is."""

    state: BuildState
    image: str | None = None
    """Digest, once ready."""
    detail: str = ""
    lock: str | None = None
    """Digest of the dependency lock, once known."""
    proof: Proof | None = None
    """How the model is served, once known."""
    documents: tuple[Document, ...] = ()
    """What it is made of and how it was made, once ready."""


class ImageBuilder(Protocol):
    """Makes images. Every method raises `ImageError`."""

    def find(self, request: ImageRequest) -> ImageStatus:
        """How far the image for `request` is."""
        ...

    def build(self, request: ImageRequest) -> None:
        """Start making the image, unless it is there or under way; a failed build is tried again."""
        ...

    def document(self, digest: str) -> bytes:
        """The content of a document that a status named."""
        ...


def digest_of(folder: Path) -> str:
    """SHA-256 over names and contents of every file below `folder`, independent of times and order."""
    return _digest(folder, (path for path in folder.rglob("*") if path.is_file()))


def digest_of_file(path: Path) -> str:
    """SHA-256 of the file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def approved_files(request: ImageRequest, model: Path) -> dict[str, File]:
    """The files below `model`; `ImageError` where they are not those that were approved for the version."""
    try:
        files = listed(model)
    except ValueError as error:
        raise ImageError(f"the files of {request.version} cannot be told: {error}", retryable=False) from error
    found = digest(files)
    if request.files and found != request.files:
        words = f"the files of {request.version} have SHA-256 {found}, those approved had {request.files}"
        raise ImageError(f"{words}: register what is there now as a new version", retryable=False)
    return files


def without_others(model: Path, files: Collection[str]) -> None:
    """Remove what is below `model` and not among `files`, such as bytecode of a model that was run."""
    for path in model.rglob("*"):
        if path.is_file() and path.relative_to(model).as_posix() not in files:
            path.unlink()


def server_digest() -> str:
    """Digest of the model server's own files, as `ImageRequest` wants it."""
    return _digest(_SOURCE.parent, server_files())


def server_files() -> tuple[Path, ...]:
    """The files that the model server consists of: all of ours that is in an image. They compile models, too."""
    packages = (path for part in ("compiling", "runtime") for path in (_SOURCE / part).rglob("*") if path.is_file())
    sources = (path for path in packages if "__pycache__" not in path.parts)
    both = (_SOURCE / "stacked_columns.py", *_SOURCE.glob("prediction_log*.py"))
    return (_SOURCE / "__init__.py", *sorted(both), *sorted(sources))


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
            total.update(f"{path.relative_to(root).as_posix()}\0{digest_of_file(path)}\n".encode())
    return total.hexdigest()
