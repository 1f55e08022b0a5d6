"""Settled blocks and how far the logs were read, in one SQLite file, so that one transaction keeps both.

Every call opens the file anew: there is nothing to close, and nothing to go stale. The serial guards against
two readers of one log, as while one controller takes over from another: the slower one's work is refused.

What is large is kept in parts that are only added to: requests that are not settled, ids of those that were lately,
and the histories of revisions.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from monitoring.blocks import Block, BlockError, Seen
from monitoring.filling import Part
from monitoring.label_store import SCHEMA as LABEL_SCHEMA
from monitoring.label_store import forget_labels, keep_awaited
from monitoring.labels import Awaited
from monitoring.ruler import KEPT
from monitoring.shadow_blocks import ShadowBlock

_VERSION = 2
"""Of the form of `Saved.state`; what another version left is not understood, and reading begins anew."""
MOST_PARTS = 500
"""Parts of one history in the file before they are put together."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS reading (serial INTEGER NOT NULL, state TEXT NOT NULL);
INSERT INTO reading SELECT 0, '{}' WHERE NOT EXISTS (SELECT 1 FROM reading);
CREATE TABLE IF NOT EXISTS forgotten (rollout TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS settled (
    rollout TEXT NOT NULL, id INTEGER NOT NULL, block BLOB NOT NULL, PRIMARY KEY (rollout, id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS paired (
    rollout TEXT NOT NULL, id INTEGER NOT NULL, block BLOB NOT NULL, PRIMARY KEY (rollout, id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counted (rollout TEXT NOT NULL, log INTEGER NOT NULL, at REAL NOT NULL, ids TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS entities (rollout TEXT NOT NULL, met TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS parts (
    rollout TEXT NOT NULL, log INTEGER NOT NULL, number INTEGER NOT NULL, part BLOB NOT NULL,
    PRIMARY KEY (rollout, log, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS history (model TEXT NOT NULL, revision TEXT NOT NULL, seen BLOB NOT NULL, n INT NOT NULL);
"""


class OutrunError(BlockError):
    """Somebody else has read on in between."""

    def __init__(self) -> None:
        super().__init__("another reader has read on in the access log", retryable=True)


@dataclass(frozen=True, slots=True)
class Counted:
    """Requests of a rollout in one log that were settled at the same time."""

    rollout: str
    log: int
    at: float
    ids: list[str]


@dataclass(frozen=True, slots=True)
class Saved:
    """Where reading stands."""

    serial: int
    state: dict[str, Any]
    forgotten: frozenset[str]
    counted: list[Counted]
    parts: list[tuple[str, int, Part]]
    """Rollout, log and part, in order."""
    history: list[tuple[str, str, list[Seen]]]
    """Model, revision, and what was seen of it, oldest first."""
    entities: list[tuple[str, list[str]]]
    """Rollout, and what `Entities.take_new` gave, in order."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What is to be saved together."""

    state: dict[str, Any]
    blocks: Sequence[Block] = ()
    counted: Sequence[Counted] = ()
    parts: Sequence[tuple[str, int, Part]] = ()
    """Rollout, log and part."""
    history: dict[tuple[str, str], list[Seen]] = field(default_factory=dict)
    """What was seen since the last time, by model and revision."""
    superfluous: Collection[tuple[str, str]] = ()
    """Models and revisions whose history is dropped."""
    pairs: Sequence[ShadowBlock] = ()
    entities: Sequence[tuple[str, list[str]]] = ()
    """Rollout, and what came to be known of its entities."""
    awaited: Sequence[tuple[str, int, Awaited]] = ()
    """Rollout, block of labels and request, of those whose labels are waited for."""
    forget: Collection[str] = ()
    """Rollouts that are dropped."""
    settled_before: float = 0.0
    """Requests settled before this time need not be known any more."""


_blocks = msgspec.json.Decoder(Block)
_pairs = msgspec.json.Decoder(ShadowBlock)
_parts = msgspec.json.Decoder(Part)
_seen = msgspec.json.Decoder(list[Seen])


class BlockStore:
    """Every method raises `BlockError`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._transaction() as database:
            database.executescript(_SCHEMA + LABEL_SCHEMA)

    def load(self) -> Saved:
        with self._transaction() as database:
            serial, text = database.execute("SELECT serial, state FROM reading").fetchone()
            forgotten = frozenset(name for (name,) in database.execute("SELECT rollout FROM forgotten"))
            rows = database.execute("SELECT rollout, log, at, ids FROM counted ORDER BY rowid")
            counted = [Counted(rollout, log, at, ids.split("\n")) for rollout, log, at, ids in rows]
            rows = database.execute("SELECT rollout, log, part FROM parts ORDER BY rollout, log, number")
            parts = [(rollout, log, _parts.decode(part)) for rollout, log, part in rows]
            rows = database.execute("SELECT model, revision, seen FROM history ORDER BY rowid")
            history = [(model, revision, _seen.decode(seen)) for model, revision, seen in rows]
            rows = database.execute("SELECT rollout, met FROM entities ORDER BY rowid")
            entities = [(rollout, met.split("\n")) for rollout, met in rows]
        state = msgspec.json.decode(text)
        state = state if state.get("version") == _VERSION else {}
        return Saved(serial, state, forgotten, counted, parts, history, entities)

    def save(self, serial: int, progress: Progress) -> int:
        """All of it or nothing; the next serial. `OutrunError` where `serial` is not the stored one."""
        text = msgspec.json.encode({"version": _VERSION, **progress.state})
        with self._transaction() as database:
            changed = database.execute(
                "UPDATE reading SET serial = serial + 1, state = ? WHERE serial = ?", (text, serial)
            )
            if changed.rowcount != 1:
                raise OutrunError
            rows = [(block.rollout, block.id, msgspec.json.encode(block)) for block in progress.blocks]
            database.executemany("INSERT INTO settled VALUES (?, ?, ?)", rows)
            pairs = [(block.rollout, block.id, msgspec.json.encode(block)) for block in progress.pairs]
            database.executemany("INSERT INTO paired VALUES (?, ?, ?)", pairs)
            _keep_counted(database, progress)
            _keep_parts(database, progress)
            _keep_history(database, progress)
            met = [(rollout, "\n".join(new)) for rollout, new in progress.entities]
            database.executemany("INSERT INTO entities VALUES (?, ?)", met)
            keep_awaited(database, progress.awaited)
            for rollout in progress.forget:
                database.execute("DELETE FROM settled WHERE rollout = ?", (rollout,))
                database.execute("DELETE FROM paired WHERE rollout = ?", (rollout,))
                database.execute("DELETE FROM counted WHERE rollout = ?", (rollout,))
                database.execute("DELETE FROM parts WHERE rollout = ?", (rollout,))
                database.execute("DELETE FROM entities WHERE rollout = ?", (rollout,))
                forget_labels(database, rollout)
                database.execute("INSERT OR IGNORE INTO forgotten VALUES (?)", (rollout,))
        return serial + 1

    def blocks(self, rollout: str, after: int) -> tuple[Block, ...]:
        with self._transaction() as database:
            query = "SELECT block FROM settled WHERE rollout = ? AND id > ? ORDER BY id"
            return tuple(_blocks.decode(text) for (text,) in database.execute(query, (rollout, after)))

    def pairs(self, rollout: str, after: int) -> tuple[ShadowBlock, ...]:
        with self._transaction() as database:
            query = "SELECT block FROM paired WHERE rollout = ? AND id > ? ORDER BY id"
            return tuple(_pairs.decode(text) for (text,) in database.execute(query, (rollout, after)))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._path, timeout=10.0)) as database:
                database.execute("PRAGMA synchronous = NORMAL")
                with database:
                    yield database
        except sqlite3.Error as error:
            raise BlockError(f"blocks cannot be kept in {self._path}: {error}", retryable=True) from error


def _keep_counted(database: sqlite3.Connection, progress: Progress) -> None:
    rows = [(each.rollout, each.log, each.at, "\n".join(each.ids)) for each in progress.counted]
    database.executemany("INSERT INTO counted VALUES (?, ?, ?, ?)", rows)
    database.execute("DELETE FROM counted WHERE at < ?", (progress.settled_before,))


def _keep_parts(database: sqlite3.Connection, progress: Progress) -> None:
    for rollout, log, part in progress.parts:
        if part.records or part.closed:
            row = (rollout, log, part.number, msgspec.json.encode(part))
            database.execute("INSERT INTO parts VALUES (?, ?, ?, ?)", row)
        where = (rollout, log, part.first_needed)
        database.execute("DELETE FROM parts WHERE rollout = ? AND log = ? AND number < ?", where)


def _keep_history(database: sqlite3.Connection, progress: Progress) -> None:
    """Add what is new; what makes more than twice a history is put together and cut to one."""
    for (model, revision), seen in progress.history.items():
        where = (model, revision)
        database.execute("INSERT INTO history VALUES (?, ?, ?, ?)", (*where, msgspec.json.encode(seen), len(seen)))
        query = "SELECT sum(n), count(*) FROM history WHERE model = ? AND revision = ?"
        requests, parts = database.execute(query, where).fetchone()
        if parts > 1 and (requests > 2 * KEPT or parts > MOST_PARTS):
            _compact(database, model, revision)
    for where in progress.superfluous:
        database.execute("DELETE FROM history WHERE model = ? AND revision = ?", where)


def _compact(database: sqlite3.Connection, model: str, revision: str) -> None:
    query = "SELECT seen FROM history WHERE model = ? AND revision = ? ORDER BY rowid"
    parts = [_seen.decode(seen) for (seen,) in database.execute(query, (model, revision))]
    last = [one for part in parts for one in part][-KEPT:]
    database.execute("DELETE FROM history WHERE model = ? AND revision = ?", (model, revision))
    row = (model, revision, msgspec.json.encode(last), len(last))
    database.execute("INSERT INTO history VALUES (?, ?, ?, ?)", row)
