"""Labels, and the requests that wait for them, in the file of the settled blocks (`monitoring.block_store`).

Requests are written there together with the block that they settled in. Labels come by themselves, in any order and
any number of times; one whose request is not waited for is kept for a while, because that may not have ended.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec

from monitoring.blocks import Arm, BlockError
from monitoring.label_policy import LabelPolicy
from monitoring.labels import Awaited, Kept, Label, LabelBlock, complete, told
from monitoring.ruler import Prediction

EARLY_SECONDS = 600.0
"""A label of a request that nobody waits for is forgotten after this."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS awaited (
    rollout TEXT NOT NULL, block INTEGER NOT NULL, request TEXT NOT NULL, arm TEXT NOT NULL, at REAL NOT NULL,
    prediction BLOB, PRIMARY KEY (rollout, block, request)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS awaited_request ON awaited (request);
CREATE TABLE IF NOT EXISTS labels (
    request TEXT NOT NULL, row INTEGER NOT NULL, at REAL NOT NULL, value BLOB, loss REAL, PRIMARY KEY (request, row)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS labelled (
    rollout TEXT NOT NULL, id INTEGER NOT NULL, block BLOB NOT NULL, PRIMARY KEY (rollout, id)
) WITHOUT ROWID;
"""

_predictions = msgspec.json.Decoder(Prediction)
_values = msgspec.json.Decoder(str | float | bool)
_blocks = msgspec.json.Decoder(LabelBlock)


class LabelStore:
    """In a file that a `BlockStore` made. Every method raises `BlockError`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._swept = 0.0

    def keep(self, labels: Sequence[Label], now: float) -> Kept:
        """All of them or none; of a row that has a label already, that one counts."""
        rows = [(one.request_id, one.row, now, _written(one.value), one.loss) for one in labels]
        with self._transaction() as database:
            self._sweep(database, now)
            new = [row for row in rows if database.execute(_INSERT, row).rowcount]
            query = "SELECT EXISTS (SELECT 1 FROM awaited WHERE request = ?)"
            known = sum(database.execute(query, (request,)).fetchone()[0] for request, *_ in new)
        return Kept(len(new), len(rows) - len(new), known)

    def _sweep(self, database: sqlite3.Connection, now: float) -> None:
        """Forget what nobody waited for; seldom, because that looks at every label."""
        if now >= self._swept + EARLY_SECONDS / 10:
            self._swept = now
            query = "DELETE FROM labels WHERE at < ? AND request NOT IN (SELECT request FROM awaited)"
            database.execute(query, (now - EARLY_SECONDS,))

    def settle(self, rollout: str, before: int, policy: LabelPolicy, now: float) -> int:
        """Tell the blocks below `before` that wait for nothing more, in order; how many requests were in them."""
        settled = 0
        with self._transaction() as database:
            query = "SELECT coalesce(max(id), 0) + 1 FROM labelled WHERE rollout = ?"
            (number,) = database.execute(query, (rollout,)).fetchone()
            while number < before:
                answers = _answers(database, rollout, number)
                labels = _labels(database, rollout, number)
                late = [one for one in answers if not complete(one, labels.get(one.request_id, ()))]
                if late and max(one.assigned for one in answers) + policy.wait_seconds > now:
                    break
                block = told(number, rollout, answers, labels, policy.scale)
                where = (rollout, number)
                database.execute("INSERT INTO labelled VALUES (?, ?, ?)", (*where, msgspec.json.encode(block)))
                database.executemany("DELETE FROM labels WHERE request = ?", [one[:1] for one in answers])
                database.execute("DELETE FROM awaited WHERE rollout = ? AND block = ?", where)
                settled += len(answers)
                number += 1
        return settled

    def labelled(self, rollout: str, after: int) -> tuple[LabelBlock, ...]:
        with self._transaction() as database:
            query = "SELECT block FROM labelled WHERE rollout = ? AND id > ? ORDER BY id"
            return tuple(_blocks.decode(text) for (text,) in database.execute(query, (rollout, after)))

    def pending(self, rollout: str) -> int:
        """Requests that wait."""
        with self._transaction() as database:
            query = "SELECT count(*) FROM awaited WHERE rollout = ?"
            (requests,) = database.execute(query, (rollout,)).fetchone()
        return int(requests)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._path, timeout=10.0, isolation_level=None)) as database:
                database.execute("PRAGMA synchronous = NORMAL")
                database.execute("BEGIN IMMEDIATE")
                yield database
                database.execute("COMMIT")
        except sqlite3.Error as error:
            raise BlockError(f"labels cannot be kept in {self._path}: {error}", retryable=True) from error


def keep_awaited(database: sqlite3.Connection, awaited: Iterable[tuple[str, int, Awaited]]) -> None:
    """By rollout and block, in the transaction of whoever settled them."""
    rows = [(rollout, block, *one[:3], _written(one.prediction)) for rollout, block, one in awaited]
    database.executemany("INSERT INTO awaited VALUES (?, ?, ?, ?, ?, ?)", rows)


def forget_labels(database: sqlite3.Connection, rollout: str) -> None:
    """Drop everything about `rollout`, in the transaction of whoever forgets it."""
    query = "DELETE FROM labels WHERE request IN (SELECT request FROM awaited WHERE rollout = ?)"
    database.execute(query, (rollout,))
    database.execute("DELETE FROM awaited WHERE rollout = ?", (rollout,))
    database.execute("DELETE FROM labelled WHERE rollout = ?", (rollout,))


_INSERT = "INSERT INTO labels VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"


def _written(value: object) -> bytes | None:
    return None if value is None else msgspec.json.encode(value)


def _answers(database: sqlite3.Connection, rollout: str, block: int) -> list[Awaited]:
    query = "SELECT request, arm, at, prediction FROM awaited WHERE rollout = ? AND block = ?"
    return [
        Awaited(request, Arm(arm), at, None if prediction is None else _predictions.decode(prediction))
        for request, arm, at, prediction in database.execute(query, (rollout, block))
    ]


def _labels(database: sqlite3.Connection, rollout: str, block: int) -> dict[str, list[Label]]:
    """By request."""
    query = (
        "SELECT request, row, value, loss FROM awaited JOIN labels USING (request)"
        " WHERE rollout = ? AND block = ? ORDER BY request, row"
    )
    found = defaultdict[str, list[Label]](list)
    for request, row, value, loss in database.execute(query, (rollout, block)):
        found[request].append(Label(request, row, None if value is None else _values.decode(value), loss))
    return found
