"""What the local target keeps of a revision on disk: its record, its process, its log.

One folder per revision. The record is written before the process is started and replaced as a whole, so that
every folder with a record can be made sense of.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from registry_hooks.model_version import ModelVersion
from serving.revision import Revision, RevisionSettings

LOG_BYTES = 8 * 1024 * 1024
"""A log that has grown beyond this loses its older half."""

KEPT_LOGS = 50
"""Logs of so many revisions are kept after their end."""


@dataclass(frozen=True, slots=True)
class Record:
    """One revision as the local target knows it."""

    revision: Revision
    port: int
    started: float
    """Seconds since the epoch of the first start."""
    restarts: int = 0
    stop_by: float | None = None
    """When it is killed if it has not ended by itself; None unless it was asked to stop."""


@dataclass(frozen=True, slots=True)
class Folder:
    """Where the files of one revision are."""

    path: Path

    @property
    def record(self) -> Path:
        return self.path / "revision.json"

    @property
    def process(self) -> Path:
        return self.path / "process.json"

    @property
    def log(self) -> Path:
        return self.path / "server.log"

    def save(self, record: Record) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        fresh = self.record.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(record)))
        fresh.replace(self.record)

    def load(self) -> Record | None:
        """The record; None where the folder was made and nothing came of it."""
        try:
            saved = json.loads(self.record.read_text())
        except FileNotFoundError:
            return None
        return Record(**saved | {"revision": parse_revision(saved["revision"])})


def tail(log: Path, lines: int) -> tuple[str, ...]:
    """The last `lines` lines; empty where there is no log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 300 * lines - 4096))
            return tuple(file.read().decode(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ()


def trim(log: Path) -> None:
    """Take the older half of a log that has become too large. Its writers append, so they may go on meanwhile."""
    if log.stat().st_size > LOG_BYTES:
        kept = log.read_bytes()[-LOG_BYTES // 2 :]
        with log.open("r+b") as file:
            file.truncate()
            file.write(kept)


def put_away(log: Path, logs: Path) -> None:
    """Move the log of a revision that is gone to the others, and forget the oldest of too many."""
    logs.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):  # another controller that ends it too was first
        log.replace(logs / f"{log.parent.name}.log")
    _forget_oldest(logs)


def keep(revision_id: str, lines: Sequence[str], logs: Path) -> None:
    """Add to the log of a revision that is gone, or of an earlier life of one."""
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / f"{revision_id}.log").open("a") as log:
        log.writelines(f"{line}\n" for line in lines)
    _forget_oldest(logs)


def _forget_oldest(logs: Path) -> None:
    for old in sorted(logs.glob("*.log"), key=lambda path: path.stat().st_mtime)[:-KEPT_LOGS]:
        old.unlink(missing_ok=True)


def parse_revision(saved: Mapping[str, Any]) -> Revision:
    """Of a revision's fields as JSON has them."""
    settings = dict(saved["settings"])
    for field in ("environment", "node_labels"):
        settings[field] = tuple((name, value) for name, value in settings.get(field, ()))
    return Revision(ModelVersion(**saved["version"]), saved["image"], RevisionSettings(**settings))
