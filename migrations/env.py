"""What Alembic runs around every revision, on the connection and in the transaction of `engine.store.schema`."""

from __future__ import annotations

from alembic import context

from engine.store.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
