"""What is stored on this machine: images below the home folder, the environments that they run in, and locks.

Most files of an environment are links to uv's cache, and stay there: only what nothing else holds counts as freed.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from serving.environment import Environments
from serving.image import ImageError
from serving.local_state import Folder
from serving.package_source import PackageSource
from serving.stock import Kind, Stored


class LocalShelf:
    """`Shelf` below one folder."""

    def __init__(self, home: Path, kind: Kind = Kind.MODEL, packages: PackageSource | None = None) -> None:
        """`kind`: what its images are, `SOURCE` where an engine makes others of them; of `packages` they were made."""
        self._home = home.absolute()
        self._images = self._home / "images"
        self._kind = kind
        self._environments = Environments(self._home, packages)

    def stored(self) -> Iterator[Stored]:
        running = dict(self._running())
        for place in _seen(self._images):
            try:
                taken = self._taken(place)
                used = ", ".join(sorted(revision for revision, image in running.items() if image == place.name))
                yield _stored(place, place.name, self._kind, taken, used or _held(place))
            except FileNotFoundError:
                continue
        for folder, kind in (("environments", Kind.PACKAGES), ("locks", Kind.LOCK)):
            for place in _seen(self._home / folder):
                yield _stored(place, self._name(place), kind)

    def remove(self, one: Stored) -> bool:
        place = self._images / one.name if one.kind is self._kind else self._home / one.name
        if one.kind is self._kind:
            with _unused(place):
                _away(place)
        elif place.is_dir():
            _away(place)
        else:
            place.unlink(missing_ok=True)
        return True

    def sweep(self) -> None:
        """Beginnings of environments and locks, ends of images, and names for images that are gone."""
        left = [path for name in ("environments", "locks") for path in (self._home / name).glob(".*")]
        for path in (*left, *self._images.glob(".*")):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.parent != self._images or not (self._images / path.read_text()).exists():
                path.unlink(missing_ok=True)

    def _taken(self, image: Path) -> frozenset[str]:
        try:
            lock = str(json.loads((image / "image.json").read_text())["lock"])
        except (ValueError, KeyError):  # it is not whole, and nothing runs from it
            return frozenset()
        try:
            return frozenset(self._name(path) for path in self._environments.taken(image / "model", lock))
        except ImageError:  # whatever it is, nothing can be built of it
            return frozenset({self._name(self._environments.path(lock))})

    def _name(self, path: Path) -> str:
        return path.relative_to(self._home).as_posix()

    def _running(self) -> Iterator[tuple[str, str]]:
        """Id and image of each revision of which the target for this machine knows."""
        for path in (self._home / "revisions").glob("*/"):
            record = Folder(path).load()
            if record is not None:
                yield record.revision.id, record.revision.image


def _seen(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*") if not path.name.startswith(".")]


def _stored(place: Path, name: str, kind: Kind, stands_on: frozenset[str] = frozenset(), used: str = "") -> Stored:
    made = datetime.fromtimestamp(place.stat().st_mtime, UTC)
    return Stored(name, kind, made, _size(place), stands_on=stands_on, used=used)


def _size(place: Path) -> int:
    """Bytes of the files that nothing else holds."""
    told = _told(str(place)) if place.is_dir() else (place.stat(),)
    return sum(one.st_blocks * 512 for one in told if one.st_nlink == 1)


def _told(folder: str) -> Iterator[os.stat_result]:
    """Of every file below the folder."""
    with os.scandir(folder) as found:
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                yield from _told(entry.path)
            else:
                yield entry.stat(follow_symlinks=False)


def _held(image: Path) -> str:
    """By what it is used, where somebody holds it; see `LocalImage.held`."""
    try:
        with _unused(image):
            return ""
    except ImageError as error:
        return str(error)


@contextmanager
def _unused(image: Path) -> Iterator[None]:
    """Nobody takes it into use meanwhile; `ImageError` where somebody has it."""
    with (image / "image.json").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ImageError("a process of this machine serves it", retryable=True) from error
        yield


def _away(place: Path) -> None:
    """Remove the folder; what is left where that is cut short is no image and no environment any more."""
    gone = place.with_name(f".{place.name}.gone")
    place.rename(gone)
    shutil.rmtree(gone)
