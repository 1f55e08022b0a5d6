"""Fetches files in parts, several at once, each again where it broke off, and takes no file that is not the listed one.

Whether a source honours ranges is seen by its answer to the first part of each file that is missing; the other parts
are asked for only then. Otherwise the file is read in one go, whatever is held of it already.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from serving.runtime.fetch_parts import Parts
from serving.runtime.fetch_source import Source, SourceError
from serving.runtime.manifest import Listed, sha256

_THREADS = 4

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
"""Seconds between two tries of the same part."""


class WrongFileError(Exception):
    """A file is not the listed one, also when it was fetched anew."""


@dataclass(slots=True)
class _File:
    listed: Listed
    parts: Parts
    asked: int = 0
    """Parts that are being fetched."""
    anew: bool = False
    """It was fetched from scratch because its checksum was wrong."""


class Fetch:
    """Files on their way from a source to a folder; what is held of them is kept in the folder `journals`."""

    def __init__(
        self, files: Sequence[Listed], folder: Path, journals: Path, tries: int, warn: Callable[[str], None]
    ) -> None:
        """`tries`: how often in a row a part may be asked for without a byte coming."""
        self._files = [_File(file, Parts(folder / file.path, journals / file.path, file.bytes)) for file in files]
        self._tries, self._warn = tries, warn
        self._guard = threading.Lock()
        self._running = 0
        self.checked = 0
        """Bytes that were read again for their checksums."""
        self._ended: SimpleQueue[Future[None]] = SimpleQueue()

    @property
    def held(self) -> int:
        """Bytes that are there."""
        return sum(file.parts.held for file in self._files)

    def run(self, source: Source) -> None:
        """Return once all files are there and are what was listed.

        `SourceError` where the source does not give them, `WrongFileError` where it gives something else, `OSError`
        where they cannot be kept. Threads may still be busy then.
        """
        self._source, self._pool = source, ThreadPoolExecutor(_THREADS, "fetch")
        for file in self._files:
            self._submit(self._begin, file)
        try:
            while self._running:
                self._ended.get().result()
                with self._guard:
                    self._running -= 1
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _submit(self, job: Callable[..., None], *about: Any) -> None:
        with self._guard:
            self._running += 1
        self._pool.submit(job, *about).add_done_callback(self._ended.put)

    def _begin(self, file: _File) -> None:
        file.parts.open()
        self._fill(file)

    def _fill(self, file: _File) -> None:
        missing = file.parts.missing
        if not missing:
            self._check(file)
            return
        file.asked = 1
        self._part(file, missing[0], missing[1:])

    def _part(self, file: _File, number: int, others: Sequence[int] = ()) -> None:
        """Fetch a part, and have the others fetched as soon as ranges are seen to be honoured."""
        failures = 0
        while (gap := file.parts.gap(number)) is not None:
            try:
                answer = self._source.ask(file.listed, gap.start, gap.end)
                if not answer.whole:
                    others = self._spread(file, others)
                at = 0 if answer.whole else gap.start
                for piece in answer.pieces:
                    file.parts.put(at, piece)
                    at, failures = at + len(piece), 0
            except SourceError as error:
                failures += 1
                self._pause(error, failures)
        with self._guard:
            file.asked -= 1
            last = not file.asked
        if last:
            self._check(file)

    def _spread(self, file: _File, others: Sequence[int]) -> Sequence[int]:
        with self._guard:
            file.asked += len(others)
        for other in others:
            self._submit(self._part, file, other)
        return ()

    def _pause(self, error: SourceError, failures: int) -> None:
        if not error.retryable or failures >= self._tries:
            raise error
        seconds = min(_FIRST_PAUSE * 2 ** (failures - 1), _LONGEST_PAUSE)
        self._warn(f"{error}; asked again in {seconds:g} s")
        time.sleep(seconds)

    def _check(self, file: _File) -> None:
        listed, found = file.listed, sha256(file.parts.file, self._count)
        if found == listed.sha256:
            file.parts.close()
            return
        file.parts.forget()
        wrong = f"{listed.path} has the sha256 {found}, and {listed.sha256} is listed"
        if file.anew:
            raise WrongFileError(wrong)
        file.anew = True
        self._count(-listed.bytes)
        self._warn(f"{wrong}; it is fetched anew")
        self._fill(file)

    def _count(self, size: int) -> None:
        with self._guard:
            self.checked += size
