"""Steps of a migration that do nothing where they have been done.

MariaDB and MySQL commit each change of a table by itself: an upgrade that was broken off there is run again from the
beginning of the revision in which it stopped. Elsewhere a revision is done as a whole or not at all.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

MYSQL: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}


def knows_partial_indexes() -> bool:
    """Whether this is one of the databases that do; they also undo a revision that was broken off."""
    return op.get_bind().dialect.name in ("sqlite", "postgresql")


def create_table(name: str, *parts: Any) -> None:
    """A table of Penstock's."""
    if knows_partial_indexes() or not sa.inspect(op.get_bind()).has_table(name):
        op.create_table(name, *parts, **MYSQL)


def add_column(table: str, column: sa.Column[Any]) -> None:
    """A column, with a default for the rows that are there unless it is nullable."""
    if knows_partial_indexes() or column.name not in _columns(table):
        op.add_column(table, column)


def drop_column(table: str, column: str) -> None:
    """Away with a column."""
    if knows_partial_indexes() or column in _columns(table):
        op.drop_column(table, column)


def create_index(name: str, table: str, columns: list[str], *, where: str | None = None) -> None:
    """An index; of the rows `where`, on a database that knows such ones."""
    if knows_partial_indexes() or name not in _indexes(table):
        rows = None if where is None else sa.text(where)
        op.create_index(name, table, columns, unique=False, sqlite_where=rows, postgresql_where=rows)


def drop_index(name: str, table: str) -> None:
    """Away with an index."""
    if knows_partial_indexes() or name in _indexes(table):
        op.drop_index(name, table)


def _columns(table: str) -> set[str]:
    return {column["name"] for column in sa.inspect(op.get_bind()).get_columns(table)}


def _indexes(table: str) -> set[str | None]:
    return {index["name"] for index in sa.inspect(op.get_bind()).get_indexes(table)}
