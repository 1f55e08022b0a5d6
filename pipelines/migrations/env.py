"""What Alembic runs: the migrations, on the connection and in the transaction that `pipelines.sql_database` gives."""

from __future__ import annotations

from alembic import context

from pipelines.sql_tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
