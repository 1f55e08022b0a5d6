"""One SQL database: connections, transactions, the schema, and failures in the store's own words.

SQLite runs in write-ahead mode and takes its write lock when a transaction begins, so that none has to be
given up half-way; readers never wait. Only what waiting can cure is retryable: a lock, a full disk, a server
that does not answer.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic import ValidationError
from sqlalchemy import Connection, Engine, Table, create_engine, event, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import (
    TimeoutError as PoolTimeout,
)
from sqlalchemy.pool import ConnectionPoolEntry

from pipelines.store import Conflict, StoreError

BUSY_SECONDS = 5
"""How long a statement waits for somebody else's lock; less than the controller's lease."""
CONNECT_SECONDS = 5
"""How long a PostgreSQL server may take to answer."""
MIGRATION_LOCK = 7_263_512
"""Key of PostgreSQL's advisory lock that lets one process at a time migrate."""
_CURABLE = frozenset(
    {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}
)
"""What SQLite reports as an operational error and waiting can cure; the rest, such as a missing table, it cannot."""


class Database:
    """A database by its URL, ``sqlite:///<path>`` or ``postgresql+psycopg://...``. Every method raises `StoreError`."""

    def __init__(self, url: str) -> None:
        self._engine = _engine(url)
        self.dialect = self._engine.dialect.name

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads."""
        with translated(), self._engine.connect().execution_options(reading=True) as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction: committed at the end of the block, undone where the block raises."""
        with translated(), self._engine.begin() as connection:
            yield connection

    def insert(self, table: Table) -> sqlite.Insert | postgresql.Insert:
        """An INSERT in the database's own dialect, which can say what happens to a row that is there already."""
        return sqlite.Insert(table) if self.dialect == "sqlite" else postgresql.Insert(table)

    def upgrade(self) -> None:
        """Make or migrate the tables; a schema newer than this release knows is refused."""
        with self.write() as connection:
            if self.dialect == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
            _migrate(connection)

    def close(self) -> None:
        self._engine.dispose()


def _migrate(connection: Connection) -> None:
    config = Config(attributes={"connection": connection})
    folder = str(Path(__file__).with_name("migrations"))
    config.set_main_option("script_location", folder.replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    present = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in scripts.walk_revisions()}
    if present is not None and present not in known:
        newest = scripts.get_current_head()
        message = f"the store has schema {present}, and this release knows up to {newest}: install a newer release"
        raise StoreError(message, retryable=False)
    command.upgrade(config, "head")


@contextmanager
def translated() -> Iterator[None]:
    """Failures of SQLAlchemy and of reading records, as `StoreError`."""
    try:
        yield
    except IntegrityError as error:
        raise Conflict(f"the store refused the change: {_said(error)}") from error
    except PoolTimeout as error:
        raise StoreError("every connection to the store is in use", retryable=True) from error
    except DBAPIError as error:
        raise StoreError(f"the store failed: {_said(error)}", retryable=_curable(error)) from error
    except SQLAlchemyError as error:
        raise StoreError(f"the store was used wrongly: {error}", retryable=False) from error
    except ValidationError as error:
        message = f"a stored {error.title} cannot be read, perhaps another release wrote it: {error.errors()[0]['msg']}"
        raise StoreError(message, retryable=False) from error


def _said(error: DBAPIError) -> str:
    """The database's own words, on one line."""
    return " ".join(str(error.orig).split())


def _curable(error: DBAPIError) -> bool:
    if isinstance(error.orig, sqlite3.Error):
        return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in _CURABLE
    return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        make = {"sqlite": _sqlite, "postgresql": _postgresql}.get(parsed.get_backend_name())
        if make is None:
            raise StoreError(f"the store can be SQLite or PostgreSQL, not {parsed.get_backend_name()}", retryable=False)
        return make(parsed)
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise StoreError(f"the URL of the store cannot be used: {error}", retryable=False) from error


def _sqlite(url: URL) -> Engine:
    if not url.database or url.database == ":memory:":
        raise StoreError("the store needs a file: sqlite:///<path>", retryable=False)
    Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    """Leave transactions to us; survive a loss of power too: what was not saved must not have been acted on."""
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    reading = connection.get_execution_options().get("reading", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _postgresql(url: URL) -> Engine:
    engine = create_engine(url, connect_args={"connect_timeout": CONNECT_SECONDS}, pool_pre_ping=True)
    event.listen(engine, "connect", _prepare_postgresql)
    return engine


def _prepare_postgresql(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    cursor.execute(f"SET lock_timeout = '{BUSY_SECONDS}s'")
    cursor.close()
    connection.commit()
