"""SQLite in WAL mode. A write transaction has the database to itself, so it is the grant lock, too."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Connection, Engine, create_engine, event, func
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError

from penstock.decision import HeldSlot
from penstock.errors import StoreUnavailable
from penstock.store import stepwise
from penstock.store.asking import CONNECTIONS, LOOK, POOL, QUEUED, Answer, Ask
from penstock.store.writing import Cursor

_BACKOFF_SECONDS = (0.0002, 0.004)


class _Syntax:
    quote, now, share, update, skip = "`", "(penstock_now() + :shift)", "", "", ""
    queued = QUEUED
    returns_ids = True

    def parameter(self, name: str) -> str:
        return f":{name}"

    def is_duplicate(self, error: Exception) -> bool:
        return isinstance(error, sqlite3.IntegrityError) and "UNIQUE" in str(error)


SYNTAX = _Syntax()


def _now() -> int:
    return time.time_ns() // 1000


class SqliteDialect:
    """See `penstock.store.dialects.Dialect`."""

    upgrades_itself = True
    syntax = SYNTAX
    reading: Mapping[str, Any] = {"penstock_read_only": True}

    def __init__(self) -> None:
        self._lock_seconds = 2.0

    def engine(self, url: URL, *, lock_seconds: float, create: bool, connections: int = CONNECTIONS) -> Engine:
        """Every transaction begins IMMEDIATE, with a random backoff of our own: SQLite's own ladder starves some."""
        self._lock_seconds = lock_seconds
        if create and url.database and url.database != ":memory:":
            try:
                Path(url.database).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreUnavailable(f"{url}: its folder cannot be made: {error}") from error
        engine = create_engine(
            url,
            connect_args={"check_same_thread": False, "timeout": 0},
            **POOL,
            pool_size=connections,
        )

        @event.listens_for(engine, "connect")
        def _connect(raw: sqlite3.Connection, _record: object) -> None:
            raw.isolation_level = None
            raw.create_function("penstock_now", 0, _now)
            deadline = time.monotonic() + lock_seconds
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                _until_free(partial(raw.execute, f"PRAGMA {pragma}"), deadline)

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            read_only = connection.get_execution_options().get("penstock_read_only", False)
            statement = "BEGIN" if read_only else "BEGIN IMMEDIATE"
            raw: Any = connection.connection.driver_connection  # each try through SQLAlchemy costs ten times as much
            try:
                _until_free(partial(raw.execute, statement), time.monotonic() + lock_seconds)
            except sqlite3.OperationalError as error:
                raise OperationalError(statement, None, error) from error

        return engine

    def now(self) -> ColumnElement[int]:
        """The system's clock: file and processes are on one machine."""
        return func.penstock_now(type_=BigInteger)

    def insert_if_absent(self, connection: Connection, table: Any, values: Any) -> bool:
        return connection.execute(sqlite.insert(table).on_conflict_do_nothing(), values).rowcount == 1

    def try_grant_lock(self, connection: Connection) -> bool:
        return True

    def grant_lock(self, connection: Connection) -> None:
        pass

    def is_missing(self, url: URL) -> bool:
        return bool(url.database) and url.database != ":memory:" and not Path(str(url.database)).is_file()

    def forks_well(self, url: URL) -> bool:
        return url.database in (None, "", ":memory:")

    def upgrading(self, connection: Connection) -> AbstractContextManager[None]:
        return nullcontext()

    def lend(self, raw: sqlite3.Connection) -> None:
        pass

    def take_back(self, raw: sqlite3.Connection) -> None:
        pass

    def was_undone(self, error: BaseException) -> bool:
        return False

    def was_blocked(self, error: BaseException) -> bool:
        return "locked" in str(error)

    def missing_right(self, error: BaseException, url: URL, engine: Engine) -> str | None:
        # A file system, or a connection, may be read-only for a while: that is an outage, and waited for.
        if "readonly database" in str(error) and url.database and not os.access(url.database, os.W_OK):
            return f"give this user the right to write {url.database}, the files beside it, and their folder"
        return None

    def elsewhere(self, connection: Connection) -> str | None:
        return None

    def acquire(self, cursor: sqlite3.Cursor, ask: Ask) -> Answer:
        self._begin_immediate(cursor)
        answer = stepwise.acquire(Cursor(cursor, SYNTAX), ask, stepwise.write)
        cursor.execute("ROLLBACK" if answer.state is None else "COMMIT")
        return answer

    def acknowledge(
        self, cursor: sqlite3.Cursor, claim_id: str, session_id: str, *, shift: int
    ) -> tuple[HeldSlot, ...] | None:
        self._begin_immediate(cursor)
        slots = stepwise.acknowledge(Cursor(cursor, SYNTAX), claim_id, session_id, shift)
        cursor.execute("ROLLBACK" if slots is None else "COMMIT")
        return slots

    def release(self, cursor: sqlite3.Cursor, claim_id: str, session_id: str, *, shift: int) -> tuple[bool, bool]:
        self._begin_immediate(cursor)
        done = stepwise.release(Cursor(cursor, SYNTAX), claim_id, session_id, shift)
        cursor.execute("COMMIT" if done else "ROLLBACK")
        return done, done and self.look(cursor)

    def grant_simple(self, cursor: Any, *, shift: int) -> tuple[list[str] | None, bool]:
        return [], True  # the pass by steps does it all

    def look(self, cursor: sqlite3.Cursor) -> bool:
        return any(cursor.execute(LOOK).fetchone())

    def notify(self, cursor: Any, claim_ids: Collection[str]) -> None:
        pass

    def listen(self, url: URL, engine: Engine, session_id: str | None) -> None:
        return None

    def _begin_immediate(self, cursor: sqlite3.Cursor) -> None:
        _until_free(partial(cursor.execute, "BEGIN IMMEDIATE"), time.monotonic() + self._lock_seconds)


def _until_free(attempt: Callable[[], object], deadline: float) -> None:
    while True:
        try:
            attempt()
            return
        except Exception as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(random.uniform(*_BACKOFF_SECONDS))  # noqa: S311  # jitter, not a secret
