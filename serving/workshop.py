"""Folders for unfinished work: each is gone with its work, or at the latest when somebody next looks after a crash.

Several processes may work below one folder. Whoever works holds a lock on a file beside its folder, which the system
lets go when the process ends, however it ends. All of them share another one, which is had `alone` while nobody works.
"""

from __future__ import annotations

import fcntl
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def workshop(place: Path) -> Iterator[Path]:
    """A new folder below `place`; waits while somebody has that `alone`."""
    place.mkdir(parents=True, exist_ok=True)
    folder = place / uuid.uuid4().hex
    lock = folder.with_suffix(".lock")
    with _turn(place, fcntl.LOCK_SH), lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink()


@contextmanager
def alone(place: Path) -> Iterator[None]:
    """Nobody works below `place` meanwhile; `BlockingIOError` where somebody does already."""
    place.mkdir(parents=True, exist_ok=True)
    with _turn(place, fcntl.LOCK_EX | fcntl.LOCK_NB):
        yield


@contextmanager
def _turn(place: Path, how: int) -> Iterator[None]:
    with place.with_suffix(".turn").open("w") as turn:
        fcntl.flock(turn, how)
        yield


def clear(place: Path) -> None:
    """Remove the folders below `place` at which nobody works any more."""
    for lock in place.glob("*.lock"):
        with lock.open("w") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)


def put(path: Path, text: str) -> None:
    """Have the file say `text`, at once and whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.new")
    fresh.write_text(text)
    fresh.replace(path)
