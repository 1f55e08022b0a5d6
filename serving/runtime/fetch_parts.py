"""A file that comes in parts, and what is held of it, on disk: whoever is killed at any moment goes on from there.

Each part is filled from its beginning. How far is kept in a small file beside, written after the bytes themselves, so
that it never says too much while the machine runs; what a power cut leaves is found by the checksum.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

PART = 64 << 20
"""Bytes of a part: few enough to be many at once, enough that asking for each costs nothing."""

_ONE = Struct("<Q")


@dataclass(frozen=True, slots=True)
class Gap:
    """What is missing of a part."""

    start: int
    end: int


class Parts:
    """A file of `size` bytes at `file`, which threads may fill together."""

    def __init__(self, file: Path, journal: Path, size: int) -> None:
        self.file, self._beside, self._size = file, journal, size
        self._held = _read(journal, size) if file.exists() and file.stat().st_size == size else _none(size)
        self._data = self._journal = -1
        self._guard = threading.Lock()

    @property
    def held(self) -> int:
        """Bytes."""
        return sum(self._held)

    @property
    def missing(self) -> list[int]:
        """Numbers of the parts that have a gap."""
        return [number for number in range(len(self._held)) if self.gap(number) is not None]

    def gap(self, number: int) -> Gap | None:
        """What is missing of a part."""
        gap = Gap(number * PART + self._held[number], min((number + 1) * PART, self._size))
        return gap if gap.start < gap.end else None

    def open(self) -> None:
        """To be called before anything is put or forgotten."""
        for path in (self.file, self._beside):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._data = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o644)
        self._journal = os.open(self._beside, os.O_RDWR | os.O_CREAT, 0o644)
        self._save()
        os.ftruncate(self._data, self._size)

    def put(self, at: int, data: bytes) -> None:
        """Take bytes that lie at `at`; those that are held already are passed over."""
        rest = memoryview(data)
        while rest:
            number, inside = divmod(at, PART)
            piece = rest[: PART - inside]
            with self._guard:
                self._put(number, at, piece)
            at, rest = at + len(piece), rest[len(piece) :]

    def forget(self) -> None:
        """Nothing of it is held any more."""
        self._held = _none(self._size)
        self._save()

    def close(self) -> None:
        os.close(self._data)
        os.close(self._journal)

    def _put(self, number: int, at: int, piece: memoryview) -> None:
        known = number * PART + self._held[number]
        piece = piece[max(0, known - at) :]
        if not piece:
            return
        written = 0
        while written < len(piece):
            written += os.pwrite(self._data, piece[written:], known + written)
        self._held[number] += written
        os.pwrite(self._journal, _ONE.pack(self._held[number]), number * _ONE.size)

    def _save(self) -> None:
        os.ftruncate(self._journal, len(self._held) * _ONE.size)
        os.pwrite(self._journal, b"".join(map(_ONE.pack, self._held)), 0)


def held(journal: Path) -> int:
    """How many bytes are held of the file that it belongs to; 0 where nothing is known of it."""
    try:
        return sum(_numbers(journal.read_bytes()))
    except OSError:
        return 0


def _read(journal: Path, size: int) -> list[int]:
    known, none = _numbers(journal.read_bytes()) if journal.exists() else [], _none(size)
    return known if len(known) == len(none) and all(0 <= number <= PART for number in known) else none


def _numbers(content: bytes) -> list[int]:
    return [number for (number,) in _ONE.iter_unpack(content[: len(content) // _ONE.size * _ONE.size])]


def _none(size: int) -> list[int]:
    return [0] * -(-size // PART)
