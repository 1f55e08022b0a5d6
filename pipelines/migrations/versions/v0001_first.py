"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

MOMENT = sa.DateTime(timezone=True)
COUNTED = sa.BigInteger().with_variant(sa.Integer, "sqlite")

NEVER_CHANGED = {
    "sqlite": (
        """CREATE TRIGGER events_no_update BEFORE UPDATE ON events
        BEGIN SELECT RAISE(ABORT, 'the history is append-only'); END""",
        """CREATE TRIGGER events_no_delete BEFORE DELETE ON events
        BEGIN SELECT RAISE(ABORT, 'the history is append-only'); END""",
    ),
    "postgresql": (
        """CREATE FUNCTION events_append_only() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'the history is append-only'; END $$""",
        """CREATE TRIGGER events_no_change BEFORE UPDATE OR DELETE ON events
        FOR EACH ROW EXECUTE FUNCTION events_append_only()""",
        """CREATE TRIGGER events_no_truncate BEFORE TRUNCATE ON events
        FOR EACH STATEMENT EXECUTE FUNCTION events_append_only()""",
    ),
}


def upgrade() -> None:
    _rollouts()
    _lives()
    _intents()
    _registry()
    _events()
    _leases()


def _rollouts() -> None:
    op.create_table(
        "rollouts",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("channel", sa.Text, nullable=False),
        sa.Column("version", sa.Integer),
        sa.Column("phase", sa.Text, nullable=False),
        sa.Column("settled", sa.Boolean, nullable=False),
        sa.Column("serial", sa.Integer, nullable=False),
        sa.Column("begun", MOMENT, nullable=False),
        sa.Column("updated", MOMENT, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_index("ix_rollouts_model", "rollouts", ["model", "begun"])
    active = sa.column("settled", sa.Boolean).is_(False)
    key = ["model", "channel"]
    op.create_index("ux_rollouts_active", "rollouts", key, unique=True, sqlite_where=active, postgresql_where=active)


def _lives() -> None:
    op.create_table(
        "lives",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("channel", sa.Text, primary_key=True),
        sa.Column("serial", sa.Integer, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )


def _intents() -> None:
    op.create_table(
        "intents",
        sa.Column("seq", COUNTED, primary_key=True, autoincrement=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("outcome", sa.Text),
        sa.Column("settled_at", MOMENT),
    )
    waiting = sa.column("outcome", sa.Text).is_(None)
    order = ["at", "seq"]
    op.create_index("ix_intents_waiting", "intents", order, sqlite_where=waiting, postgresql_where=waiting)


def _registry() -> None:
    op.create_table("models", sa.Column("model", sa.Text, primary_key=True))
    op.create_table(
        "holdings",
        sa.Column("model", sa.Text, sa.ForeignKey("models.model", ondelete="CASCADE"), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("channel", sa.Text, primary_key=True),
        sa.Column("since", MOMENT, nullable=False),
    )


def _events() -> None:
    op.create_table(
        "events",
        sa.Column("id", COUNTED, primary_key=True, autoincrement=True),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_index("ix_events_model", "events", ["model", "id"])
    op.create_index("ix_events_kind", "events", ["model", "kind", "at"])
    for statement in NEVER_CHANGED[op.get_bind().dialect.name]:
        op.execute(statement)


def _leases() -> None:
    op.create_table(
        "leases",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("until", sa.Float(53), nullable=False),
    )
