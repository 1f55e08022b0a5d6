"""What only a SQL database can get wrong: its schema, its locks, other processes, other releases."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, create_engine, event, inspect, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from pipelines import sql_database
from pipelines.rollout import Event, Goal, Intent, Origin, Phase, Rollout, RolloutPolicy
from pipelines.sql_database import Database
from pipelines.sql_store import SqlStore
from pipelines.sql_tables import metadata
from pipelines.store import Conflict, StoreError
from registry_hooks.model_version import Channel, Holding, ModelVersion, Snapshot
from tests.fixtures.store import Cluster

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
CHANNEL = Channel.parse("Production")
START_SECONDS = 60.0


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'deeper' / 'store.db'}"
    made: str = request.getfixturevalue("postgres_database")()
    return made


@pytest.fixture
def store(url: str) -> Iterator[SqlStore]:
    opened = SqlStore(url)
    yield opened
    opened.close()


@pytest.fixture
def raw(store: SqlStore, url: str) -> Engine:
    """The same database, past the store."""
    return create_engine(url, poolclass=NullPool)


def rollout(name: str = "r1") -> Rollout:
    intent = Intent(f"of-{name}", Goal.LIVE, CHANNEL, "churn", 7, Origin.COMMAND, NOW)
    return Rollout(name, intent, RolloutPolicy(), Phase.CHECKING, NOW, NOW, None)


def told(words: str) -> Event:
    return Event("churn", NOW, "phase", words)


def lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    return iter(process.stdout.readline, "")


def run(script: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


# The schema


def test_the_migrated_schema_is_that_of_the_tables(raw: Engine) -> None:
    with raw.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata) == []
        indexes = {index["name"] for index in inspect(connection).get_indexes("rollouts")}
    assert indexes == {"ix_rollouts_model", "ux_rollouts_active"}


def test_opening_twice_keeps_everything(store: SqlStore, url: str) -> None:
    saved = store.save(rollout())
    again = SqlStore(url)
    assert again.active() == (saved,)
    again.close()


def test_a_schema_of_a_newer_release_is_refused(raw: Engine, url: str) -> None:
    with raw.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(
        StoreError, match=r"has schema 9999, and this release knows up to \d+: install a newer"
    ) as refused:
        SqlStore(url)
    assert not refused.value.retryable


OPEN = "import sys; from pipelines.sql_store import SqlStore; SqlStore(sys.argv[1]).close(); print('opened')"


def test_two_processes_may_make_the_schema_at_once(url: str) -> None:
    racing = [run(OPEN, url) for _ in range(2)]
    assert [process.communicate(timeout=START_SECONDS)[0].strip() for process in racing] == ["opened", "opened"]


def test_history_cannot_be_changed(store: SqlStore, raw: Engine) -> None:
    store.append([told("first")])
    statements = ["UPDATE events SET model = 'other'", "DELETE FROM events"]
    for statement in [*statements, *(["TRUNCATE events"] if raw.dialect.name == "postgresql" else [])]:
        with raw.connect() as connection, pytest.raises(DBAPIError, match="the history is append-only"):
            connection.execute(text(statement))
    assert store.read() == (told("first"),)


def test_the_database_itself_refuses_a_second_active_rollout(store: SqlStore, raw: Engine) -> None:
    store.save(rollout())
    copied = "INSERT INTO rollouts SELECT 'r2', model, channel, version, phase, settled, serial, begun, updated, body"
    with raw.connect() as connection, pytest.raises(DBAPIError, match=r"(?i)unique"):
        connection.execute(text(f"{copied} FROM rollouts"))


# Other releases


def test_a_field_that_is_not_known_any_more_is_passed_over(store: SqlStore, raw: Engine) -> None:
    saved = store.save(rollout())
    with raw.begin() as connection:
        body = json.loads(connection.execute(text("SELECT body FROM rollouts")).scalar_one())
        body["forgotten"] = body["policy"]["forgotten"] = {"a": [1]}
        del body["held"], body["policy"]["restarts"]
        connection.execute(text("UPDATE rollouts SET body = :body"), {"body": json.dumps(body)})
    assert store.active() == (saved,)


def test_a_record_that_cannot_be_read_is_named(store: SqlStore, raw: Engine) -> None:
    store.save(rollout())
    with raw.begin() as connection:
        connection.execute(text('UPDATE rollouts SET body = \'{"phase": "dreaming"}\''))
    with pytest.raises(StoreError, match="a stored Rollout cannot be read") as failure:
        store.active()
    assert not failure.value.retryable


# What an observation costs


@pytest.fixture
def statements() -> Iterator[list[str]]:
    """The first word of every statement that is executed, of those that write."""
    written: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        word = statement.split(maxsplit=1)[0]
        written.extend([word] if word in ("INSERT", "UPDATE", "DELETE") else [])

    event.listen(Engine, "before_cursor_execute", note)
    yield written
    event.remove(Engine, "before_cursor_execute", note)


def test_what_did_not_change_is_not_written_again(store: SqlStore, statements: list[str]) -> None:
    held = [Holding(ModelVersion("churn", number), CHANNEL, NOW) for number in range(5)]
    seen = Snapshot(frozenset({"churn", "fraud"}), frozenset(held))
    store.observe(seen, [])
    statements.clear()
    store.observe(seen, [])
    assert statements == []
    store.observe(Snapshot(frozenset({"churn"}), frozenset(held[1:])), [])
    assert statements == ["DELETE"]


# Other processes

HOLD = """
import sys, time
from pipelines.sql_store import SqlStore
store = SqlStore(sys.argv[1])
while True:
    print("held" if store.acquire("first", 1.5) else "refused", flush=True)
    time.sleep(0.1)
"""


def test_the_lease_of_a_killed_process_is_taken_over(store: SqlStore, url: str) -> None:
    first = run(HOLD, url)
    try:
        assert next(lines(first)) == "held\n"
        assert not store.acquire("second", 60)
        renewed = time.monotonic() + 2.0
        while time.monotonic() < renewed:
            assert not store.acquire("second", 60), "taken from a living holder"
            time.sleep(0.05)
        assert first.poll() is None
        os.killpg(first.pid, signal.SIGKILL)
        killed = time.monotonic()
        while not store.acquire("second", 60):
            assert time.monotonic() < killed + 10
            time.sleep(0.02)
        assert store.holder() is not None
    finally:
        first.kill()
        first.communicate()


RACE = """
import sys, time
from pipelines.sql_store import SqlStore
store = SqlStore(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(store.acquire(sys.argv[2], 60), flush=True)
"""


def test_one_of_two_processes_takes_the_lease(store: SqlStore, url: str) -> None:
    racing = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, url, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in ("first", "second")
    ]
    assert [next(lines(process)) for process in racing] == ["ready\n"] * 2
    for process in racing:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=START_SECONDS)[0].strip() for process in racing]
    assert sorted(answers) == ["False", "True"]


# Failures


def test_a_locked_database_is_worth_another_try(store: SqlStore, raw: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = store.save(rollout())
    impatient = _impatient(store, raw, monkeypatch)
    with raw.connect() as other:
        other.execute(text("UPDATE rollouts SET phase = 'building'"))
        with pytest.raises(StoreError) as failure:
            impatient.save(saved)
        other.rollback()
    assert failure.value.retryable
    assert not isinstance(failure.value, Conflict)
    assert impatient.save(saved).serial == 2
    impatient.close()


def _impatient(store: SqlStore, raw: Engine, monkeypatch: pytest.MonkeyPatch) -> SqlStore:
    """The same database by a store that waits for locks a moment only."""
    monkeypatch.setattr(sql_database, "BUSY_SECONDS", 0.2)
    return SqlStore(raw.url.render_as_string(hide_password=False))


def test_readers_do_not_wait_for_a_writer(store: SqlStore, raw: Engine) -> None:
    saved = store.save(rollout())
    with raw.connect() as other:
        other.execute(text("UPDATE rollouts SET phase = 'building'"))
        assert store.active() == (saved,)
        other.rollback()


DISCONNECT = """SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"""


@pytest.mark.postgres
def test_a_connection_lost_between_transactions_is_made_again(
    postgres_cluster: Cluster, postgres_database: Callable[[], str]
) -> None:
    store = SqlStore(postgres_database())
    postgres_cluster.execute(DISCONNECT)
    assert store.save(rollout()).serial == 1
    store.close()


@pytest.mark.postgres
def test_a_connection_lost_in_a_transaction_is_worth_another_try(
    postgres_cluster: Cluster, postgres_database: Callable[[], str]
) -> None:
    database = Database(postgres_database())

    def lose() -> None:
        with database.write() as connection:
            postgres_cluster.execute(DISCONNECT)
            connection.execute(text("SELECT 1"))

    with pytest.raises(StoreError) as failure:
        lose()
    assert failure.value.retryable
    database.close()


@pytest.mark.parametrize(
    ("wrong", "retryable", "words"),
    [
        ("postgresql+psycopg://nobody@127.0.0.1:1/store", True, "the store failed"),
        ("mysql://root@127.0.0.1/store", False, "SQLite or PostgreSQL, not mysql"),
        ("sqlite://", False, "needs a file"),
        ("no url", False, "cannot be used"),
        ("postgresql+nothing://x", False, "cannot be used"),
    ],
)
def test_a_url_that_leads_nowhere(wrong: str, retryable: bool, words: str) -> None:
    with pytest.raises(StoreError, match=words) as failure:
        SqlStore(wrong)
    assert failure.value.retryable is retryable


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    file.write_text("not a database, and long enough to be taken for the header of one" * 20)
    with pytest.raises(StoreError, match="not a database") as failure:
        SqlStore(f"sqlite:///{file}")
    assert not failure.value.retryable
