"""One log that is read while it is written, through renaming, truncation and replacement.

A position is an inode, an offset and the digest of the last bytes before it: these tell a file that was truncated
and has grown again, or another file that was given the same inode, from the one that was being read. What is read
counts once its position is saved, by the owner; a renamed file is deleted only after that.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from serving.gateway import GatewayError

logger = logging.getLogger(__name__)

MARK = 1024
"""Bytes before a position by which a file is known again: some lines, whose ids are like no others."""


class Log(Protocol):
    """A log that is read from where the reader was. Every method but `state` and `restore` may raise `OSError`."""

    counts: Counter[str]
    """What had to be put right; see `monitoring.access_log.COUNTERS`."""
    moved: bool
    """Whether reading has gone on to another file since `tidy`."""

    def state(self) -> list[Any]:
        """The position and what was counted, as JSON; `restore` takes it."""
        ...

    def restore(self, state: Sequence[Any] | None) -> None:
        """Go back to a position; to the beginning without one."""
        ...

    def read(self, most: int) -> bytes:
        """The next whole lines, of about `most` bytes together; nothing where there are none yet."""
        ...

    def now(self) -> float | None:
        """The time by the clock of whoever writes, in seconds; None where it is the reader's, or not known yet."""
        ...

    def tidy(self) -> None:
        """The position is saved: what lies before it is not needed."""
        ...

    def rotate(self, size: int) -> None:
        """Begin a new file where the present one has so many bytes."""
        ...


class LogFile:
    """A log at `path`; renamed to ``<path>.1`` before `reopen` makes its writer begin a new one."""

    def __init__(self, path: Path, reopen: Callable[[], object]) -> None:
        self.path = path
        self.counts = Counter[str]()
        """``renamed``, ``truncated`` and ``replaced`` files, and last lines ``cut`` short."""
        self.moved = False
        """Whether reading has gone on to another file since `tidy`."""
        self._rotated = path.with_name(f"{path.name}.1")
        self._reopen = reopen
        self._inode, self._offset, self._mark = 0, 0, _digest(b"")

    def state(self) -> list[Any]:
        """The position and what was counted, as JSON; `restore` takes it."""
        return [self._inode, self._offset, self._mark, dict(self.counts)]

    def restore(self, state: Sequence[Any] | None) -> None:
        self._inode, self._offset, self._mark, counts = state or (0, 0, _digest(b""), {})
        self.counts = Counter(counts)

    def read(self, most: int) -> bytes:
        """The next whole lines, of about `most` bytes together; nothing where there are none yet."""
        path = self._current()
        while path is not None:
            over = path == self._rotated and self.path.exists()
            data = self._read(path, most)
            if data or not over:
                return data
            path = self._go_on(path)
        return b""

    def now(self) -> float | None:
        """See `Log`."""
        return None

    def tidy(self) -> None:
        """The position is saved: what lies before it is not needed."""
        if self._inode and _inode(self.path) == self._inode:
            self._rotated.unlink(missing_ok=True)
        self.moved = False

    def rotate(self, size: int) -> None:
        """Begin a new file where the present one is larger, or where the writer has not followed the last renaming."""
        if not self._rotated.exists() and self.path.exists() and self.path.stat().st_size >= size:
            self.path.rename(self._rotated)
            self.counts["renamed"] += 1
        if self._rotated.exists() and not self.path.exists():
            try:
                self._reopen()
            except GatewayError as error:
                logger.warning("the access log is begun anew later: %s", error)

    def _current(self) -> Path | None:
        """The file to read on in; what was renamed comes first."""
        for path in (self._rotated, self.path):
            if self._inode and _inode(path) == self._inode:
                return path
        first = next((path for path in (self._rotated, self.path) if path.exists()), None)
        if first is not None:
            self.counts["replaced"] += self._inode != 0
            self._begin(first)
        return first

    def _begin(self, path: Path) -> None:
        self._inode, self._offset, self._mark = _inode(path), 0, _digest(b"")

    def _go_on(self, path: Path) -> Path:
        """From the renamed file, which the writer has left and which is read, to the new one."""
        self.counts["cut"] += path.stat().st_size > self._offset
        self._begin(self.path)
        self.moved = True
        return self.path

    def _read(self, path: Path, most: int) -> bytes:
        with path.open("rb") as file:
            before = _before(file, self._offset)
            if _digest(before) != self._mark:
                self.counts["truncated"] += 1
                self._offset, before = 0, _before(file, 0)
            data = file.read(most)
        whole = data.rfind(b"\n") + 1 or (len(data) if len(data) == most else 0)
        if whole:
            self._offset += whole
            self._mark = _digest((before + data[:whole])[-MARK:])
        return data[:whole]


def _before(file: BinaryIO, offset: int) -> bytes:
    """The bytes before `offset`, which is read from next."""
    length = min(offset, MARK)
    file.seek(offset - length)
    return file.read(length)


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0
