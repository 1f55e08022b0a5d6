"""The store in a SQL database: SQLite by default, PostgreSQL for teams.

Every write is one transaction. Whether somebody saved a record in between is decided by its serial in the
WHERE clause of the write itself, so that it makes no difference how many processes save.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Executable,
    Float,
    Result,
    and_,
    bindparam,
    delete,
    insert,
    literal_column,
    or_,
    select,
    update,
)

from pipelines import sql_tables as tables
from pipelines.live import Live
from pipelines.rollout import Event, Intent, Rollout
from pipelines.sql_database import Database
from pipelines.sql_tables import EVENT, INTENT, LIVE, ROLLOUT
from pipelines.store import Approved, Conflict, StoreError
from registry_hooks.model_version import Channel, Holding, ModelVersion, Snapshot
from serving.runtime.model_files import dumped, loaded

LEASE = "controller"
"""Name of the one lease."""
MANY = 500
"""From so many models on, everything is read instead of naming them in the query."""
CLOCK = {
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "extract(epoch FROM now())::float8",
}
"""Each database's own clock, in seconds since the epoch."""


class SqlStore:
    """Implements every port in `pipelines.store`; safe to use from several threads and processes."""

    def __init__(self, url: str) -> None:
        """Opens the database ``sqlite:///<path>`` or ``postgresql+psycopg://...`` and migrates it; `StoreError`."""
        self._database = Database(url)
        try:
            self._database.upgrade()
        except StoreError:
            self._database.close()
            raise
        self._clock: ColumnElement[float] = literal_column(CLOCK[self._database.dialect], Float)

    def close(self) -> None:
        self._database.close()

    # `RolloutStore` and `Lookup`.

    def save(self, rollout: Rollout, live: Live | None = None, events: Sequence[Event] = ()) -> Rollout:
        saved = replace(rollout, serial=rollout.serial + 1)
        with self._database.write() as connection:
            self._write(connection, saved)
            if live is not None:
                self._keep(connection, live)
            _append(connection, events)
        return saved

    def active(self) -> tuple[Rollout, ...]:
        column = tables.rollouts.c
        oldest = select(column.body).where(tables.unsettled).order_by(column.begun, column.id)
        with self._database.read() as connection:
            return tuple(ROLLOUT.read(body) for body in connection.scalars(oldest))

    def rollouts(self, model: str, limit: int = 20) -> tuple[Rollout, ...]:
        column = tables.rollouts.c
        newest = select(column.body).where(column.model == model).order_by(column.begun.desc(), column.id.desc())
        with self._database.read() as connection:
            return tuple(ROLLOUT.read(body) for body in connection.scalars(newest.limit(limit)))

    def rollout(self, rollout_id: str) -> Rollout | None:
        with self._database.read() as connection:
            body = connection.scalar(select(tables.rollouts.c.body).where(tables.rollouts.c.id == rollout_id))
            return None if body is None else ROLLOUT.read(body)

    def lives(self) -> tuple[Live, ...]:
        with self._database.read() as connection:
            found = [LIVE.read(body) for body in connection.scalars(select(tables.lives.c.body))]
        return tuple(sorted(found, key=lambda live: (live.model, live.channel)))

    def keep(self, live: Live, events: Sequence[Event] = ()) -> Live:
        with self._database.write() as connection:
            kept = self._keep(connection, live)
            _append(connection, events)
        return kept

    # `ApprovedFiles`.

    def approve(self, seen: Approved) -> Approved:
        new = self._database.insert(tables.approved_files).on_conflict_do_nothing()
        row = {"source": seen.source, "at": seen.at, "files": dumped(seen.files)}
        with self._database.write() as connection:
            connection.execute(new.values(model=seen.version.model, version=seen.version.version, **row))
            return _approved(connection, seen.version, seen.source) or seen

    def approved(self, version: ModelVersion, source: str) -> Approved | None:
        with self._database.read() as connection:
            return _approved(connection, version, source)

    # `Inbox`, and what of `Lookup` concerns it.

    def before(self) -> Snapshot:
        model, held = tables.models.c.model, tables.holdings.c
        everything = select(model, held.version, held.channel, held.since).select_from(
            tables.models.outerjoin(tables.holdings)
        )
        with self._database.read() as connection:
            rows = connection.execute(everything).all()
        return Snapshot(
            frozenset(row[0] for row in rows),
            frozenset(_holding(*row) for row in rows if row[1] is not None),
        )

    def observe(self, after: Snapshot, intents: Sequence[Intent], events: Sequence[Event] = ()) -> None:
        with self._database.write() as connection:
            _remember_models(connection, after)
            _remember_holdings(connection, after)
            self._submit(connection, intents)
            _append(connection, events)

    def submit(self, intent: Intent) -> None:
        with self._database.write() as connection:
            self._submit(connection, [intent])

    def pending(self) -> tuple[Intent, ...]:
        column = tables.intents.c
        oldest = select(column.body).where(tables.waiting).order_by(column.at, column.seq)
        with self._database.read() as connection:
            return tuple(INTENT.read(body) for body in connection.scalars(oldest))

    def settle(self, ids: Collection[str], outcome: str) -> None:
        named = update(tables.intents).where(tables.intents.c.id.in_(list(ids)), tables.waiting)
        with self._database.write() as connection:
            connection.execute(named.values(outcome=outcome, settled_at=datetime.now(UTC)))

    def outcome(self, intent_id: str) -> str | None:
        with self._database.read() as connection:
            return connection.scalar(select(tables.intents.c.outcome).where(tables.intents.c.id == intent_id))

    # `History` and `DriftRuns`.

    def append(self, events: Sequence[Event]) -> None:
        with self._database.write() as connection:
            _append(connection, events)

    def read(self, model: str | None = None, limit: int = 100) -> tuple[Event, ...]:
        newest = select(tables.events.c.body).order_by(tables.events.c.id.desc()).limit(limit)
        if model is not None:
            newest = newest.where(tables.events.c.model == model)
        with self._database.read() as connection:
            return tuple(EVENT.read(body) for body in connection.scalars(newest))[::-1]

    def last_drift(self, model: str) -> datetime | None:
        column = tables.events.c
        checks = select(column.at).where(column.model == model, column.kind == "drift")
        with self._database.read() as connection:
            return connection.scalar(checks.order_by(column.at.desc()).limit(1))

    # `Lease`.

    def acquire(self, holder: str, seconds: float) -> bool:
        held = tables.leases.c
        wanted = {"holder": holder, "until": self._clock + seconds}
        free = or_(held.holder == holder, held.until <= self._clock)
        taken = self._database.insert(tables.leases).values(name=LEASE, **wanted)
        with self._database.write() as connection:
            taken = taken.on_conflict_do_update(index_elements=[held.name], set_=wanted, where=free)
            return connection.execute(taken.returning(held.name)).first() is not None

    def release(self, holder: str) -> None:
        with self._database.write() as connection:
            connection.execute(delete(tables.leases).where(tables.leases.c.holder == holder))

    def holder(self) -> tuple[str, datetime] | None:
        held = tables.leases.c
        with self._database.read() as connection:
            row = connection.execute(select(held.holder, held.until).where(held.until > self._clock)).first()
        return None if row is None else (row.holder, datetime.fromtimestamp(row.until, UTC))

    def _write(self, connection: Connection, saved: Rollout) -> None:
        """Insert the rollout, or replace the one with the serial before its own."""
        column, row = tables.rollouts.c, _rollout_row(saved)
        if saved.serial == 1:
            new = self._database.insert(tables.rollouts).values(row).on_conflict_do_nothing(index_elements=[column.id])
            written = connection.execute(new.returning(column.id))
        else:
            same = update(tables.rollouts).where(column.id == saved.id, column.serial == saved.serial - 1)
            written = connection.execute(same.values(row).returning(column.id))
        _require_one(written, f"rollout {saved.id}")

    def _keep(self, connection: Connection, live: Live) -> Live:
        kept = replace(live, serial=live.serial + 1)
        column, row = tables.lives.c, _live_row(kept)
        key = [column.model, column.channel]
        if live.serial == 0:
            new = self._database.insert(tables.lives).values(row).on_conflict_do_nothing(index_elements=key)
            written = connection.execute(new.returning(*key))
        else:
            same = [column.model == row["model"], column.channel == row["channel"], column.serial == live.serial]
            written = connection.execute(update(tables.lives).where(*same).values(row).returning(*key))
        _require_one(written, f"what is live of {kept.model} in {kept.channel}")
        return kept

    def _submit(self, connection: Connection, intents: Sequence[Intent]) -> None:
        rows = [{"id": i.id, "model": i.model, "at": i.at, "body": INTENT.write(i)} for i in intents]
        new = self._database.insert(tables.intents).on_conflict_do_nothing(index_elements=[tables.intents.c.id])
        _execute(connection, new, rows)


def _rollout_row(rollout: Rollout) -> Mapping[str, object]:
    return {
        "id": rollout.id,
        "model": rollout.intent.model,
        "channel": str(rollout.intent.channel),
        "version": rollout.intent.version,
        "phase": rollout.phase.value,
        "settled": rollout.settled,
        "serial": rollout.serial,
        "begun": rollout.begun,
        "updated": datetime.now(UTC),
        "body": ROLLOUT.write(rollout),
    }


def _live_row(live: Live) -> Mapping[str, object]:
    return {"model": live.model, "channel": str(live.channel), "serial": live.serial, "body": LIVE.write(live)}


def _approved(connection: Connection, version: ModelVersion, source: str) -> Approved | None:
    column = tables.approved_files.c
    same = (column.model == version.model, column.version == version.version, column.source == source)
    row = connection.execute(select(column.files, column.at).where(*same)).first()
    try:
        return None if row is None else Approved(version, source, loaded(row.files), row.at)
    except ValueError as error:
        raise StoreError(f"the stored files of {version} cannot be read: {error}", retryable=False) from error


def _append(connection: Connection, events: Sequence[Event]) -> None:
    rows = [{"model": e.model, "kind": e.kind, "at": e.at, "body": EVENT.write(e)} for e in events]
    _execute(connection, insert(tables.events), rows)


def _require_one(written: Result[Any], what: str) -> None:
    """The statement met the row that it was meant for, and returned it."""
    if written.first() is None:
        raise Conflict(f"{what} was saved by somebody else in between")


def _execute(connection: Connection, statement: Executable, rows: Sequence[Mapping[str, object]]) -> None:
    """The statement once for each of `rows`, in few round trips; nothing without rows."""
    if rows:
        connection.execute(statement, rows)


# What the registry showed last.

Key = tuple[str, int, str]
"""Model, version and channel of a holding."""


def _remember_models(connection: Connection, after: Snapshot) -> None:
    column = tables.models.c.model
    stored = set(connection.scalars(select(column).where(_named(column, after.known))))
    gone = [{"gone": name} for name in sorted((after.gone - after.models) & stored)]
    _execute(connection, delete(tables.models).where(column == bindparam("gone")), gone)
    _execute(connection, insert(tables.models), [{"model": name} for name in sorted(after.models - stored)])


def _remember_holdings(connection: Connection, after: Snapshot) -> None:
    """Write the difference only: almost always nothing changed."""
    wanted = {_key(holding): holding.since for holding in after.holdings}
    stored = _stored_holdings(connection, after.models)
    held = tables.holdings.c
    same = and_(held.model == bindparam("m"), held.version == bindparam("v"), held.channel == bindparam("c"))
    moved = [key for key, since in wanted.items() if key in stored and key[2][0] != "@" and stored[key] != since]
    _execute(connection, delete(tables.holdings).where(same), [_same(key) for key in stored.keys() - wanted.keys()])
    _execute(
        connection,
        update(tables.holdings).where(same).values(since=bindparam("s")),
        [{**_same(key), "s": wanted[key]} for key in moved],
    )
    _execute(
        connection,
        insert(tables.holdings),
        [
            {"model": key[0], "version": key[1], "channel": key[2], "since": wanted[key]}
            for key in wanted.keys() - stored.keys()
        ],
    )


def _stored_holdings(connection: Connection, names: Collection[str]) -> dict[Key, datetime]:
    held = tables.holdings.c
    found = select(held.model, held.version, held.channel, held.since).where(_named(held.model, names))
    return {(row[0], row[1], row[2]): row[3] for row in connection.execute(found) if row[0] in names}


def _named(column: ColumnElement[str], names: Collection[str]) -> ColumnElement[bool]:
    """True for `names`, and for everything where they are too many to be named."""
    return column.in_(list(names)) if len(names) < MANY else column.is_not(None)


def _key(holding: Holding) -> Key:
    return holding.version.model, holding.version.version, str(holding.channel)


def _same(key: Key) -> Mapping[str, object]:
    return {"m": key[0], "v": key[1], "c": key[2]}


def _holding(model: str, version: int, channel: str, since: datetime) -> Holding:
    return Holding(ModelVersion(model, version), _channel(channel), since)


@lru_cache(maxsize=1024)
def _channel(text: str) -> Channel:
    return Channel.parse(text)
