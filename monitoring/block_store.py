"""Settled blocks and how far the log was read, in one SQLite file, so that one transaction keeps both.

Every call opens the file anew: there is nothing to close, and nothing to go stale. The serial guards against
two readers of one log, as while one controller takes over from another: the slower one's work is refused.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monitoring.blocks import ArmCount, Block, BlockError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS reading (serial INTEGER NOT NULL, state TEXT NOT NULL);
INSERT INTO reading SELECT 0, '{}' WHERE NOT EXISTS (SELECT 1 FROM reading);
CREATE TABLE IF NOT EXISTS forgotten (rollout TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS blocks (
    rollout TEXT NOT NULL, id INTEGER NOT NULL, step INTEGER NOT NULL, opened REAL NOT NULL, closed REAL NOT NULL,
    stable_requests INTEGER NOT NULL, stable_errors INTEGER NOT NULL,
    candidate_requests INTEGER NOT NULL, candidate_errors INTEGER NOT NULL,
    PRIMARY KEY (rollout, id)
) WITHOUT ROWID;
"""


class OutrunError(BlockError):
    """Somebody else has read on in between."""

    def __init__(self) -> None:
        super().__init__("another reader has read on in the access log", retryable=True)


@dataclass(frozen=True, slots=True)
class Saved:
    """Where reading stands."""

    serial: int
    state: dict[str, Any]
    forgotten: frozenset[str]


class BlockStore:
    """Every method raises `BlockError`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._transaction() as database:
            database.executescript(_SCHEMA)

    def load(self) -> Saved:
        with self._transaction() as database:
            serial, state = database.execute("SELECT serial, state FROM reading").fetchone()
            forgotten = frozenset(name for (name,) in database.execute("SELECT rollout FROM forgotten"))
        return Saved(serial, json.loads(state), forgotten)

    def save(self, serial: int, state: dict[str, Any], blocks: Sequence[Block], forget: Collection[str] = ()) -> int:
        """All of it or nothing; the next serial. `OutrunError` where `serial` is not the stored one."""
        with self._transaction() as database:
            changed = database.execute(
                "UPDATE reading SET serial = serial + 1, state = ? WHERE serial = ?", (json.dumps(state), serial)
            )
            if changed.rowcount != 1:
                raise OutrunError
            database.executemany("INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", map(_row, blocks))
            for rollout in forget:
                database.execute("DELETE FROM blocks WHERE rollout = ?", (rollout,))
                database.execute("INSERT OR IGNORE INTO forgotten VALUES (?)", (rollout,))
        return serial + 1

    def blocks(self, rollout: str, after: int) -> tuple[Block, ...]:
        with self._transaction() as database:
            rows = database.execute("SELECT * FROM blocks WHERE rollout = ? AND id > ? ORDER BY id", (rollout, after))
            return tuple(_block(*row) for row in rows)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._path, timeout=10.0)) as database:
                database.execute("PRAGMA synchronous = NORMAL")
                with database:
                    yield database
        except sqlite3.Error as error:
            raise BlockError(f"blocks cannot be kept in {self._path}: {error}", retryable=True) from error


def _row(block: Block) -> tuple[object, ...]:
    counts = (block.stable.requests, block.stable.errors, block.candidate.requests, block.candidate.errors)
    return (block.rollout, block.id, block.step, block.opened, block.closed, *counts)


def _block(rollout: str, number: int, step: int, opened: float, closed: float, *counts: int) -> Block:
    return Block(number, rollout, step, opened, closed, ArmCount(*counts[:2]), ArmCount(*counts[2:]))
