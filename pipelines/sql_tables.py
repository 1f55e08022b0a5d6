"""The tables of the store, and records as JSON.

A record is kept whole as JSON, beside the few columns that are searched or compared: a new field with a
default needs no migration, and a field that is not known any more is passed over. The price is that nothing
else of a record can be asked for in SQL. `pipelines.migrations` makes the tables; a test holds both to each
other.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Generic, TypeVar

from pydantic import TypeAdapter
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
)

from pipelines.live import Live
from pipelines.rollout import Event, Intent, Rollout


class UtcTime(TypeDecorator[datetime]):
    """A moment: aware in Python, UTC in the database, also in SQLite, which knows no time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is not None and value.tzinfo is None:
            raise ValueError(f"{value} has no time zone")
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


T = TypeVar("T")


class Body(Generic[T]):
    """Writes records of one type as JSON text, and reads them back."""

    def __init__(self, record: type[T]) -> None:
        self._adapter = TypeAdapter(record)

    def write(self, record: T) -> str:
        return json.dumps(self._adapter.dump_python(record, mode="json"), ensure_ascii=True)

    def read(self, text: str) -> T:
        """Raises pydantic's `ValidationError` where a newer or older release wrote what cannot be understood."""
        return self._adapter.validate_python(json.loads(text))


ROLLOUT, LIVE, INTENT, EVENT = Body(Rollout), Body(Live), Body(Intent), Body(Event)

metadata = MetaData()

Serial = BigInteger().with_variant(Integer, "sqlite")
"""SQLite counts up by itself only in a column that is called INTEGER."""

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("channel", Text, nullable=False),
    Column("version", Integer),
    Column("phase", Text, nullable=False),
    Column("settled", Boolean, nullable=False),
    Column("serial", Integer, nullable=False),
    Column("begun", UtcTime, nullable=False),
    Column("updated", UtcTime, nullable=False),
    Column("body", Text, nullable=False),
    Index("ix_rollouts_model", "model", "begun"),
)
unsettled = rollouts.c.settled.is_(False)
Index(
    "ux_rollouts_active",
    rollouts.c.model,
    rollouts.c.channel,
    unique=True,
    sqlite_where=unsettled,
    postgresql_where=unsettled,
)

lives = Table(
    "lives",
    metadata,
    Column("model", Text, primary_key=True),
    Column("channel", Text, primary_key=True),
    Column("serial", Integer, nullable=False),
    Column("body", Text, nullable=False),
)

intents = Table(
    "intents",
    metadata,
    Column("seq", Serial, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("model", Text, nullable=False),
    Column("at", UtcTime, nullable=False),
    Column("body", Text, nullable=False),
    Column("outcome", Text),
    Column("settled_at", UtcTime),
)
waiting = intents.c.outcome.is_(None)
Index("ix_intents_waiting", intents.c.at, intents.c.seq, sqlite_where=waiting, postgresql_where=waiting)

models = Table("models", metadata, Column("model", Text, primary_key=True))

holdings = Table(
    "holdings",
    metadata,
    Column("model", Text, ForeignKey("models.model", ondelete="CASCADE"), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("channel", Text, primary_key=True),
    Column("since", UtcTime, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("model", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("at", UtcTime, nullable=False),
    Column("body", Text, nullable=False),
    Index("ix_events_model", "model", "id"),
    Index("ix_events_kind", "model", "kind", "at"),
)

approved_files = Table(
    "approved_files",
    metadata,
    Column("model", Text, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("source", Text, primary_key=True),
    Column("at", UtcTime, nullable=False),
    Column("files", Text, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("until", Float(53), nullable=False),
)
