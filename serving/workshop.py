"""Folders for unfinished work: each is gone with its work, or at the latest when somebody next looks after a crash.

Several processes may work below one folder. Whoever works holds a lock on a file beside its folder, which the system
lets go when the process ends, however it ends.
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
    """A new folder below `place`."""
    place.mkdir(parents=True, exist_ok=True)
    folder = place / uuid.uuid4().hex
    lock = folder.with_suffix(".lock")
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink()


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
