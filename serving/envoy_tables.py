"""Where the tables are kept that Envoy follows: routes, and the clusters that they lead to.

Whoever writes them is alone in it: a table is made of the one before it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from serving.envoy import CLUSTERS_FILE, ROUTES_FILE, Config
from serving.gateway import GatewayFiles
from serving.router import RouterError


class Tables(Protocol):
    """The tables of one gateway, however many Envoys follow them. Every method raises `RouterError`."""

    def alone(self) -> AbstractContextManager[object]:
        """One writer at a time, of any process."""
        ...

    def read(self, name: str) -> Config | None:
        """What was written last; None where nothing was."""
        ...

    def write(self, name: str, table: Config) -> None:
        """Put it in place at once and durably, unless it stands there already."""
        ...

    def last_words(self) -> str:
        """What Envoy said last."""
        ...


class FileTables:
    """`Tables` in files of this machine."""

    def __init__(self, files: GatewayFiles) -> None:
        self._files = files
        self._paths = {ROUTES_FILE: files.routes, CLUSTERS_FILE: files.clusters}

    @contextmanager
    def alone(self) -> Iterator[None]:
        """`OSError` and broken files become `RouterError`."""
        try:
            self._files.tables.mkdir(parents=True, exist_ok=True)
            with self._files.lock.open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise RouterError(f"routes cannot be written: {error}", retryable=True) from error
        except (ValueError, KeyError) as error:
            raise RouterError(f"{self._files.tables} holds a broken file: {error!r}", retryable=False) from error

    def read(self, name: str) -> Config | None:
        try:
            table: Config = json.loads(self._paths[name].read_text())
        except FileNotFoundError:
            return None
        return table

    def write(self, name: str, table: Config) -> None:
        path, content = self._paths[name], json.dumps(table)
        if path.exists() and path.read_text() == content:
            return
        fresh = path.with_suffix(".new")
        with fresh.open("w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)

    def last_words(self) -> str:
        output = self._files.output
        lines = output.read_text(errors="replace").splitlines() if output.exists() else []
        return lines[-1] if lines else "it says nothing"
