"""Run by Alembic: `penstock.store.migrations.upgrade` gave the connection."""

from alembic import context

from penstock.store.tables import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=VERSION_TABLE
)
context.run_migrations()
