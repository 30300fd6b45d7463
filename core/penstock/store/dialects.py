"""What differs between the databases: how to connect, what time it is, who may grant, where epochs come from."""

from __future__ import annotations

import importlib.util
import random
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import BigInteger, ColumnElement, Connection, Engine, cast, create_engine, event, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from penstock.errors import StoreUnavailable
from penstock.store import tables

GRANT_LOCK = 0x70656E73  # "pens": one grant lock for each database schema
_BACKOFF_SECONDS = (0.0002, 0.004)


class Dialect(Protocol):
    """One kind of database."""

    upgrades_itself: bool

    def engine(self, url: URL, *, lock_seconds: float) -> Engine:
        """A pool of connections whose waits for locks are bounded."""

    def now(self) -> ColumnElement[int]:
        """The database's clock in µs since 1970, as an expression that moves on within a transaction."""

    def insert(self, table: Any) -> Any:
        """An INSERT that knows ON CONFLICT."""

    def next_epoch(self, connection: Connection) -> ColumnElement[int]:
        """The next epoch, larger than every earlier one; to be used after the row locks are held."""

    def try_grant_lock(self, connection: Connection) -> bool:
        """Take the grant lock for the rest of the transaction, or do not."""

    def grant_lock(self, connection: Connection) -> None:
        """Take the grant lock for the rest of the transaction, waiting for it."""


class SqliteDialect:
    """SQLite in WAL mode. A write transaction has the database to itself, so it is the grant lock, too."""

    upgrades_itself = True

    def engine(self, url: URL, *, lock_seconds: float) -> Engine:
        """Every transaction begins IMMEDIATE, with a random backoff of our own: SQLite's own ladder starves some."""
        if url.database and url.database != ":memory:":
            try:
                Path(url.database).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreUnavailable(f"{url}: its folder cannot be made: {error}") from error
        engine = create_engine(
            url, connect_args={"check_same_thread": False, "timeout": 0}, pool_size=4, max_overflow=16
        )

        @event.listens_for(engine, "connect")
        def _connect(raw: sqlite3.Connection, _record: object) -> None:
            raw.isolation_level = None
            raw.create_function("penstock_now", 0, lambda: time.time_ns() // 1000)
            deadline = time.monotonic() + lock_seconds
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                _until_free(partial(raw.execute, f"PRAGMA {pragma}"), deadline)

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            read_only = connection.get_execution_options().get("penstock_read_only", False)
            statement = "BEGIN" if read_only else "BEGIN IMMEDIATE"
            _until_free(lambda: connection.exec_driver_sql(statement), time.monotonic() + lock_seconds)

        return engine

    def now(self) -> ColumnElement[int]:
        """The system's clock: file and processes are on one machine."""
        return func.penstock_now(type_=BigInteger)

    def insert(self, table: Any) -> Any:
        return sqlite.insert(table)

    def next_epoch(self, connection: Connection) -> ColumnElement[int]:
        connection.execute(update(tables.meta).values(last_epoch=tables.meta.c.last_epoch + 1))
        return select(tables.meta.c.last_epoch).scalar_subquery()

    def try_grant_lock(self, connection: Connection) -> bool:
        return True

    def grant_lock(self, connection: Connection) -> None:
        pass


class PostgresqlDialect:
    """PostgreSQL: row locks with SKIP LOCKED, a transaction-level advisory lock for granting, a sequence of epochs."""

    upgrades_itself = False

    def engine(self, url: URL, *, lock_seconds: float) -> Engine:
        """A stopped process must not hold up the others: lock waits and idle transactions are bounded."""
        engine = create_engine(url, pool_size=4, max_overflow=16, pool_reset_on_return="rollback")
        milliseconds = int(lock_seconds * 1000)

        @event.listens_for(engine, "connect")
        def _connect(raw: Any, _record: object) -> None:
            autocommit, raw.autocommit = raw.autocommit, True
            for setting in ("lock_timeout", "idle_in_transaction_session_timeout"):
                raw.execute(f"SET {setting} = {milliseconds}")
            raw.autocommit = autocommit

        return engine

    def now(self) -> ColumnElement[int]:
        return cast(func.extract("epoch", func.clock_timestamp()) * 1_000_000, BigInteger)

    def insert(self, table: Any) -> Any:
        return postgresql.insert(table)

    def next_epoch(self, connection: Connection) -> ColumnElement[int]:
        return tables.epoch_sequence.next_value()

    def try_grant_lock(self, connection: Connection) -> bool:
        return bool(connection.scalar(select(func.pg_try_advisory_xact_lock(*self._lock_key()))))

    def grant_lock(self, connection: Connection) -> None:
        connection.execute(select(func.pg_advisory_xact_lock(*self._lock_key())))

    @staticmethod
    def _lock_key() -> tuple[ColumnElement[int] | int, ColumnElement[int]]:
        return GRANT_LOCK, func.hashtext(func.current_schema())


def dialect_for(url: str) -> tuple[URL, Dialect]:
    """The URL with its driver, and how to talk to what it names. Raises StoreUnavailable on an unusable URL."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise StoreUnavailable(
            "the store's URL cannot be read; write it as SQLAlchemy does: postgresql://user@host/name"
        ) from None
    match parsed.get_backend_name():
        case "sqlite":
            return parsed, SqliteDialect()
        case "postgresql":
            if parsed.drivername == "postgresql":
                parsed = parsed.set(drivername="postgresql+psycopg")
            if parsed.drivername == "postgresql+psycopg" and importlib.util.find_spec("psycopg") is None:
                raise StoreUnavailable(
                    "the store is on PostgreSQL, but no driver is installed: pip install 'penstock[postgresql]'"
                )
            return parsed, PostgresqlDialect()
        case other:
            raise StoreUnavailable(f"no store on {other!r}: use sqlite:/// or postgresql://")


def _until_free(attempt: Callable[[], object], deadline: float) -> None:
    while True:
        try:
            attempt()
            return
        except Exception as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(random.uniform(*_BACKOFF_SECONDS))  # noqa: S311  # jitter, not a secret


__all__ = ["Dialect", "PostgresqlDialect", "SqliteDialect", "dialect_for"]
