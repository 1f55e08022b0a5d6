"""The list in an image in place of a model that is too large for it: where its files are, and their digests.

Whoever builds the image makes it with `of_folder` from the model that it has at hand; the server fetches exactly these
bytes and takes no others. It holds no credentials: those are the server's own.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

FILE = "model-manifest.json"
"""Name of the manifest in the folder that would hold the model."""

FORMAT = 1
"""Of the file; a server reads no other."""

_PIECE = 1 << 20
_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Listed:
    """One file of the model."""

    path: str
    """Relative to the folder of the model, with ``/`` between."""
    bytes: int
    sha256: str
    """Hexadecimal, in small letters."""

    def __post_init__(self) -> None:
        if not _inside(self.path):
            raise ValueError(f"{self.path!r} is no path inside a model's folder")
        if self.bytes < 0 or not _DIGEST.fullmatch(self.sha256):
            raise ValueError(f"{self.path!r} has no size or no sha256")


@dataclass(frozen=True, slots=True)
class Manifest:
    """A model as it lies somewhere else."""

    source: str
    """URL of the folder that holds the files: http, https, or whatever fsspec knows."""
    files: tuple[Listed, ...]

    def __post_init__(self) -> None:
        url = urlsplit(self.source)
        if not url.scheme:
            raise ValueError(f"{self.source!r} is no URL to fetch a model from")
        if url.password or (url.scheme in ("http", "https") and (url.username or url.query or url.fragment)):
            raise ValueError("the URL to fetch a model from must have no credentials, query or fragment")
        paths = {file.path for file in self.files}
        above = {str(parent) for path in paths for parent in PurePosixPath(path).parents}
        if len(paths) < len(self.files) or paths & above:
            raise ValueError("a file is listed twice, or as a folder of another one")

    @property
    def digest(self) -> str:
        """Of all of it; names the model in a cache."""
        return hashlib.sha256(json.dumps(_written(self), sort_keys=True).encode()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files)

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_text(json.dumps(_written(self), indent=1))


def of_folder(folder: Path, source: str) -> Manifest:
    """The manifest of the model in `folder`, whose files will be found below the URL `source` by the same paths."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return Manifest(source, tuple(_listed(path, folder) for path in found))


def read(folder: Path) -> Manifest | None:
    """The manifest in `folder`; None where there is none, `ValueError` where it is not one."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        return _manifest(json.loads(path.read_text()))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is no manifest for this version of the server: {error}") from error


def sha256(path: Path, seen: Callable[[int], object] = lambda _: None) -> str:
    """Of a file's content; `seen` is told the length of every piece."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as opened:
        while piece := opened.read(_PIECE):
            digest.update(piece)
            seen(len(piece))
    return digest.hexdigest()


def _listed(path: Path, folder: Path) -> Listed:
    return Listed(path.relative_to(folder).as_posix(), path.stat().st_size, sha256(path))


def _manifest(told: dict[str, Any]) -> Manifest:
    if told["format"] != FORMAT:
        raise ValueError(f"its format is {told['format']!r}")
    return Manifest(str(told["source"]), tuple(map(_file, told["files"])))


def _file(told: dict[str, Any]) -> Listed:
    return Listed(str(told["path"]), int(told["bytes"]), str(told["sha256"]))


def _inside(path: str) -> bool:
    """Whether it is a plain path that leads to a file below the folder, whatever it is appended to."""
    parts = path.split("/")
    return not any(part in ("", ".", "..") for part in parts) and "\0" not in path and "\\" not in path


def _written(manifest: Manifest) -> dict[str, Any]:
    return {"format": FORMAT} | asdict(manifest)
