"""The floors: one INSERT and one DELETE of a row of the client's own, each durable in a transaction of its own.

*raw* is the bare driver with autocommit, one round trip for each; *SA* is SQLAlchemy Core's usual `engine.begin()`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Column, Integer, MetaData, Table, create_engine, delete, event, insert
from sqlalchemy.engine import URL, make_url

from benchmarks.crew import Cycle

table = Table("benchmark_floor", MetaData(), Column("id", Integer, primary_key=True, autoincrement=False))
INSERT, DELETE = f"INSERT INTO {table.name} (id) VALUES (%s)", f"DELETE FROM {table.name} WHERE id = %s"
BUSY_SECONDS = 30.0


def create_table(url: str) -> None:
    """Make the floors' table in that database."""
    engine = create_engine(url)
    table.create(engine, checkfirst=True)
    engine.dispose()


@contextmanager
def raw(*, client: int, url: str) -> Iterator[Cycle]:
    """The bare driver."""
    connection = _connect(make_url(url))
    cursor = connection.cursor()
    mark = "?" if isinstance(connection, sqlite3.Connection) else "%s"
    write, remove = INSERT.replace("%s", mark), DELETE.replace("%s", mark)

    def cycle() -> None:
        cursor.execute(write, (client,))
        cursor.execute(remove, (client,))

    yield cycle
    connection.close()


@contextmanager
def sqlalchemy(*, client: int, url: str) -> Iterator[Cycle]:
    """SQLAlchemy Core."""
    timeout = {"timeout": BUSY_SECONDS} if make_url(url).get_backend_name() == "sqlite" else {}
    engine = create_engine(url, connect_args=timeout)
    write, remove = insert(table).values(id=client), delete(table).where(table.c.id == client)
    if timeout:
        event.listen(engine, "connect", lambda connection, _record: _durable(connection))

    def cycle() -> None:
        with engine.begin() as connection:
            connection.execute(write)
        with engine.begin() as connection:
            connection.execute(remove)

    yield cycle
    engine.dispose()


def _connect(url: URL) -> Any:
    match url.get_backend_name():
        case "postgresql":
            import psycopg

            return psycopg.connect(url.set(drivername="postgresql").render_as_string(False), autocommit=True)
        case "mysql" | "mariadb":
            import pymysql

            return pymysql.connect(
                host=url.host,
                port=url.port or 3306,
                user=url.username,
                password=url.password or "",
                database=url.database,
                autocommit=True,
            )
        case _:
            connection = sqlite3.connect(str(url.database), timeout=BUSY_SECONDS, isolation_level=None)
            _durable(connection)
            return connection


def _durable(connection: Any) -> None:
    """As Penstock sets its own SQLite connections: a write-ahead log that is synced at each commit."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
