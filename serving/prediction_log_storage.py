"""Where the files of a prediction log lie: the folders of a file system, or the bucket of an object store.

A file of a folder has another name until it is whole, and what a writer that was killed left behind is swept away. An
object is whole or not there, so one request is all that it takes; and nobody asks for a folder, because that would make
a bucket that is missing, by a wrong name as likely as not.

Runs in the model's own environment, as `serving.prediction_log` does.
"""

from __future__ import annotations

import errno
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import fsspec
import pyarrow as pa

_logger = logging.getLogger(__name__)

_OBJECTS = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})
"""Protocols of object stores."""
_LEFT_AFTER = 3600.0
"""Seconds after which a file that is not whole never will be: its writer was killed. So often it is looked for."""
_PASSING = frozenset({errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT, getattr(errno, "EREMOTEIO", errno.ETIMEDOUT)})
"""Numbers of errors that a storage has got over when it is asked again."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
"""Seconds between attempts; each time twice as long."""

T = TypeVar("T")


class AwayError(OSError):
    """The storage does not answer, or says that it cannot at the moment: trying again can help."""


class Storage:
    """The files of one log, by paths that begin with `root`. Every method raises `OSError`, and nothing of a library's.

    Used by one thread.
    """

    def __init__(self, url: str) -> None:
        """`ImportError` or `ValueError` where nothing reaches such a storage."""
        self._files, self.root = fsspec.core.url_to_fs(url)
        protocols = self._files.protocol
        self._objects = not _OBJECTS.isdisjoint([protocols] if isinstance(protocols, str) else protocols)
        self._swept = -math.inf
        """When it was looked last for what others left."""

    def put(self, folder: str, name: str, content: pa.Buffer, before: str) -> None:
        """The file appears whole or not at all; `before` is the folder of the day before."""
        with self._told():
            if self._objects:
                self._files.pipe_file(f"{folder}/{name}", content.to_pybytes())
            else:
                self._put_by_rename(folder, name, content, before)

    def paths(self, pattern: str) -> list[str]:
        """The files that the pattern names, as they are now. Nothing is there yet, or its bucket is."""
        with self._told():
            self._files.invalidate_cache()  # other processes write
            found = [str(path) for path in self._files.glob(pattern)]
            bucket = self.root.partition("/")[0]
            if self._objects and not found and not self._files.exists(bucket):
                raise FileNotFoundError(errno.ENOENT, f"there is no bucket {bucket}, or it is nobody's business here")
            return found

    def get(self, path: str) -> bytes:
        with self._told():
            content: bytes = self._files.cat_file(path)
            return content

    def _put_by_rename(self, folder: str, name: str, content: pa.Buffer, before: str) -> None:
        now = time.time()
        self._files.makedirs(folder, exist_ok=True)
        if now >= self._swept + _LEFT_AFTER:
            self._swept = now
            self._sweep(before, now - _LEFT_AFTER)
            self._sweep(folder, now - _LEFT_AFTER)
        unfinished = f"{folder}/.{int(now * 1e6):017d}-{name}"
        try:
            with self._files.open(unfinished, "wb") as file:
                file.write(content)
            self._files.mv(unfinished, f"{folder}/{name}")
        except BaseException:
            with suppress(OSError):
                self._files.rm(unfinished)
            raise

    def _sweep(self, folder: str, before: float) -> None:
        """Remove what writers left that were killed while they wrote. Never a reason not to write."""
        try:
            for path in map(str, self._files.ls(folder, detail=False)):
                if _begun(path.rsplit("/", 1)[1]) < before:
                    self._files.rm(path)
        except FileNotFoundError:
            pass  # nothing was written on that day, or another writer was quicker
        except Exception as error:  # noqa: BLE001 - storages raise their libraries' own
            _logger.debug("%s was not looked through: %s", folder, error)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Libraries of object stores let errors of their own through where no answer came."""
        try:
            yield
        except OSError as error:
            if _passes(error):
                raise AwayError(error.errno, error.strerror or str(error)) from error
            raise
        except Exception as error:
            if not self._objects:
                raise
            raise AwayError(errno.EAGAIN, str(error)) from error


def patiently(work: Callable[[], T], seconds: float) -> T:
    """Try again while the storage is away, for so long; then `AwayError`."""
    deadline, pause = time.monotonic() + seconds, _FIRST_PAUSE
    while True:
        try:
            return work()
        except AwayError as error:
            if time.monotonic() + pause > deadline:
                raise
            _logger.warning("the prediction log waits for its storage: %s", error)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _passes(error: OSError) -> bool:
    return isinstance(error, ConnectionError | TimeoutError) or error.errno in _PASSING


def _begun(name: str) -> float:
    """When a file that is not whole was begun, in seconds since the epoch; never, for one that is."""
    return int(name[1:18]) / 1e6 if name.startswith(".") and name[1:18].isdigit() else math.inf
