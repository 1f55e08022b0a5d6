"""Models that were fetched, in a folder that the servers of one machine share.

A model lies in a folder named by the digest of its manifest, which appears, whole and checked, by a rename. One server
fetches while it holds the lock on a file beside it; the others wait. The lock is the kernel's, so that one who dies
lets go, and what it has fetched is kept for whoever comes next.

A server that finds a model there reads all of it once and compares the digests: a second for each gigabyte, of which
loading the model, which is in memory then, gets most back. In return nothing has to be forced to disk, and whatever
happened to the files meanwhile is found before it is served. A file that is wrong is fetched and put in the place of
the other one; servers that have that open keep it.
"""

from __future__ import annotations

import errno
import fcntl
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from serving.runtime.fetch import Fetch, WrongFileError
from serving.runtime.fetch_parts import held
from serving.runtime.fetch_source import SourceError, source_at
from serving.runtime.manifest import Listed, Manifest, sha256

_LOOK_SECONDS = 0.2
"""How often a server that waits looks whether it is its turn."""

_THREADS = 4

_FULL = (errno.ENOSPC, errno.EDQUOT)


class FetchError(Exception):
    """The model cannot be had; the message is one line that says why."""


class Report(Protocol):
    """Whoever wants to know how far it is."""

    def at(self, now: Callable[[], tuple[str, int]]) -> None:
        """From now on, `now` says what is done, and with how many of the model's bytes that is over."""

    def warn(self, text: str) -> None:
        """Something went wrong, and is tried again."""


class ModelCache:
    """One model in the cache at `folder`."""

    def __init__(self, folder: Path, manifest: Manifest, tries: int, report: Report) -> None:
        """`tries`: how often in a row a part of a file may be asked for without a byte coming."""
        self._folder, self._manifest, self._tries, self._report = folder, manifest, tries, report
        self._model = folder / manifest.digest
        self._parts = folder / f"{manifest.digest}.part"
        self._journals = self._parts / "held"

    def model(self) -> Path:
        """The folder of the model once all of it is there; raises `FetchError`."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._have()
        except SourceError as error:
            raise FetchError(f"the model cannot be fetched from {self._manifest.source}: {error}") from error
        except WrongFileError as error:
            raise FetchError(f"what was fetched from {self._manifest.source} is not the model: {error}") from error
        except OSError as error:
            raise FetchError(f"the model cannot be kept in {self._folder}: {error}") from error
        return self._model

    def _have(self) -> None:
        wrong = self._wrong(self._manifest.files) if self._model.is_dir() else None
        if wrong == []:
            return
        with self._turn():
            if not self._model.is_dir():
                self._fetch(self._manifest.files)
                (self._parts / "files").rename(self._model)
            elif wrong is not None:
                self._mend(self._wrong(wrong))
            # Otherwise another server has fetched and checked it while this one waited.
            shutil.rmtree(self._parts, ignore_errors=True)

    def _mend(self, wrong: Sequence[Listed]) -> None:
        for file in wrong:
            self._report.warn(f"{file.path} in the cache is not what the manifest lists: it is fetched anew")
        if wrong:
            self._fetch(wrong)
        for file in wrong:
            (self._parts / "files" / file.path).replace(self._model / file.path)

    def _wrong(self, files: Sequence[Listed]) -> list[Listed]:
        """Those that are not in the model's folder as they should be."""
        seen = _Count()
        self._report.at(lambda: ("checking the model", seen.bytes))
        with ThreadPoolExecutor(_THREADS, "check") as pool:
            right = list(pool.map(lambda file: _is(self._model / file.path, file, seen), files))
        return [file for file, good in zip(files, right, strict=True) if not good]

    def _fetch(self, files: Sequence[Listed]) -> None:
        (self._parts / "files").mkdir(parents=True, exist_ok=True)
        fetch = Fetch(files, self._parts / "files", self._journals, self._tries, self._report.warn)
        size = sum(file.bytes for file in files)
        self._check_room(size - fetch.held)
        self._report.at(lambda: _at(fetch, size, self._manifest.size))
        try:
            fetch.run(source_at(self._manifest.source))
        except OSError as error:
            if error.errno in _FULL:
                raise self._full(size - fetch.held) from error
            raise

    def _check_room(self, wanted: int) -> None:
        if shutil.disk_usage(self._folder).free < wanted:
            raise self._full(wanted)

    def _full(self, wanted: int) -> FetchError:
        free = shutil.disk_usage(self._folder).free
        return FetchError(f"the cache {self._folder} is full: {wanted} bytes are wanted for the model, {free} are free")

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Nobody else fetches this model meanwhile."""
        with (self._folder / f"{self._manifest.digest}.lock").open("a") as lock:
            while not _locked(lock):
                self._report.at(lambda: ("another server fetches the model", self._held_by_another()))
                time.sleep(_LOOK_SECONDS)
            yield

    def _held_by_another(self) -> int:
        return sum(held(self._journals / file.path) for file in self._manifest.files)


class _Count:
    """Bytes that several threads have read."""

    def __init__(self) -> None:
        self.bytes = 0

    def add(self, count: int) -> None:
        """To show how far it is: a count that is lost between two threads does no harm."""
        self.bytes += count


def _at(fetch: Fetch, size: int, whole: int) -> tuple[str, int]:
    """`size` bytes are fetched, of a model that has `whole`."""
    others = whole - size
    if fetch.held < size:
        return "fetching the model", others + fetch.held
    return "checking what was fetched", others + fetch.checked


def _is(path: Path, file: Listed, seen: _Count) -> bool:
    if not path.is_file() or path.stat().st_size != file.bytes:
        return False
    return sha256(path, seen.add) == file.sha256


def _locked(lock: IO[str]) -> bool:
    """Take the lock; whether that worked."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
