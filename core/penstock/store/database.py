"""The database under the SQL store: its connections, its transactions, the revision of its tables."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import ColumnElement, Connection, Engine, select
from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from penstock.errors import SchemaMismatch, StoreUnavailable
from penstock.settings import StoreTimes
from penstock.store import tables as t
from penstock.store.dialects import dialect_for
from penstock.store.forking import ForkGate
from penstock.store.writing import Cursor, Syntax

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")
UNDONE_TRIES = 10
NAMES = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mariadb": "MariaDB", "mysql": "MySQL"}


class Undone(StoreUnavailable):
    """The database undid this transaction to break a circle of locks, or because a limit that it wanted was collected
    meanwhile; nothing was done, so it is done again.
    """


def again_if_undone(method: Callable[P, T]) -> Callable[P, T]:
    """For methods that are idempotent, as all of a store are."""

    @wraps(method)
    def again(*args: P.args, **kwargs: P.kwargs) -> T:
        for _ in range(UNDONE_TRIES):
            try:
                return method(*args, **kwargs)
            except Undone:
                time.sleep(random.uniform(0.001, 0.02))  # noqa: S311  # jitter, not a secret
        return method(*args, **kwargs)

    return again


def again_if_cut_off(method: Callable[Concatenate[S, bool, P], T]) -> Callable[Concatenate[S, P], T]:
    """As `again_if_undone`, for methods whose answer would be another one once it has been done.

    Their first argument says whether a try before this one may have come through, and only its answer was lost.
    """

    @wraps(method)
    def again(store: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        tries = itertools.count()
        return again_if_undone(lambda: method(store, next(tries) > 0, *args, **kwargs))()

    return again


class Transaction:
    """One transaction: its connection, the store's time and the configuration version in force, read when first asked.

    In a statement of their own: what they say is newer than any lock that was taken before.
    """

    # Not by `cached_property`: in Python 3.11 its lock is one for all transactions of the process, and one that the
    # database keeps waiting would keep all others.

    def __init__(self, connection: Connection, clock: ColumnElement[int], shift: int, syntax: Syntax) -> None:
        self.connection = connection
        self._clock, self._shift, self._syntax = clock, shift, syntax
        self._cursor: Cursor | None = None
        self._read: tuple[int, int] | None = None

    # No functools.cached_property: before Python 3.12 it keeps one lock for all threads, over a query and over a fork.

    @property
    def cursor(self) -> Cursor:
        """The driver's own cursor, in this transaction."""
        if self._cursor is None:
            self._cursor = Cursor(self.connection.connection.cursor(), self._syntax)
        return self._cursor

    @property
    def _facts(self) -> tuple[int, int]:
        if self._read is None:
            now, version = self.connection.execute(select(self._clock, t.meta.c.configuration_version)).one()
            self._read = int(now) + self._shift, version
        return self._read

    @property
    def now(self) -> int:
        """µs since 1970."""
        return self._facts[0]

    @property
    def version(self) -> int:
        """The configuration in force."""
        return self._facts[1]


class Database:
    """Connections are opened at first use and bounded by the pool. `url` is without its password."""

    def __init__(self, url: str, *, times: StoreTimes | None = None, create: bool = True) -> None:
        self._given, self.dialect = dialect_for(url)
        self._create = create
        self.url = self._given.render_as_string(hide_password=True)
        self.times = times or StoreTimes()
        self._clock = self.dialect.now()
        self.clock_shift = 0  # µs on top of the database's clock, for tests: none sleeps for an expiry
        self._engine = self.dialect.engine(self._given, lock_seconds=self.times.lock_seconds, create=create)
        self._upkeep_engine = self.dialect.engine(
            self._given, lock_seconds=self.times.lock_seconds, create=create, connections=1
        )
        self._thread = threading.local()
        self._gate: AbstractContextManager[None] = (
            nullcontext() if self.dialect.forks_well(self._given) else ForkGate(self._dispose)
        )

    def _dispose(self) -> None:
        for engine in (self._engine, self._upkeep_engine):
            engine.dispose()

    @contextmanager
    def as_upkeep(self) -> Iterator[None]:
        """What this thread does within goes over a connection of its own, which no waiter can keep from it."""
        self._thread.upkeep = True
        try:
            yield
        finally:
            self._thread.upkeep = False

    @property
    def _pool(self) -> Engine:
        return self._upkeep_engine if getattr(self._thread, "upkeep", False) else self._engine

    def server(self) -> str:
        """The kind of database and its version."""
        with self.transaction(read_only=True) as tx:
            dialect: Any = tx.connection.dialect
        name = "mariadb" if getattr(dialect, "is_mariadb", False) else dialect.name
        return f"{NAMES[name]} {'.'.join(map(str, dialect.server_version_info or ()))}"

    # -- schema ------------------------------------------------------------------------------------------------------

    @again_if_undone
    def schema_revision(self) -> str | None:
        """The revision of the store's tables, None where there are none."""
        try:
            with self._connection(read_only=True) as connection:
                if not self._engine.dialect.has_table(connection, t.VERSION_TABLE):
                    return None
                revision: str | None = connection.exec_driver_sql(
                    f"SELECT version_num FROM {t.VERSION_TABLE}"  # a constant
                ).scalar()
                return revision
        except SQLAlchemyError as error:
            raise self._unavailable(error) from error

    def upgrade(self) -> None:
        """Create the tables, or bring them to this version."""
        from penstock.store.migrations import upgrade  # noqa: PLC0415  # Alembic is slow to import, and rarely needed

        try:
            # Two upgrades at once: the second finds the work done.
            with self._connection() as connection, self.dialect.upgrading(connection):
                upgrade(connection)
        except SQLAlchemyError as error:
            raise self._unavailable(error) from error

    def check_schema(self) -> None:
        """Raises SchemaMismatch unless the tables are this version's; an SQLite file is created or upgraded instead."""
        if not self._create and self.dialect.is_missing(self._given):
            raise StoreUnavailable(
                f"{self.url}: the store's file is not there; whoever claims does not make one, for it would have no "
                "limits; if it never was, run `penstock db upgrade`"
            )
        revision = self.schema_revision()
        if revision == t.REVISION:
            return
        if self.dialect.upgrades_itself and self._create and (revision is None or revision < t.REVISION):
            self.upgrade()
        elif revision is None or revision < t.REVISION:
            raise SchemaMismatch(f"{self.url}: the store's tables are missing or older: run `penstock db upgrade`")
        else:
            raise SchemaMismatch(f"{self.url}: the store is newer (schema {revision}): upgrade Penstock here")

    @contextmanager
    def transaction(self, *, read_only: bool = False, grant_lock: bool = False) -> Iterator[Transaction]:
        """A transaction that commits at the end of the block. Raises StoreUnavailable for what the database refuses."""
        try:
            with self._connection(read_only=read_only) as connection:
                if grant_lock:
                    self.dialect.grant_lock(connection)
                yield Transaction(connection, self._clock, self.clock_shift, self.dialect.syntax)
        except ProgrammingError as error:
            if self.schema_revision() is None:
                raise SchemaMismatch(f"{self.url}: the store has no tables: run `penstock db upgrade`") from error
            raise
        except IntegrityError as error:
            if error.orig is not None and self.dialect.was_undone(error.orig):
                raise self._unavailable(error) from error
            raise
        except (OperationalError, InterfaceError, InternalError, PoolTimeout) as error:
            raise self._unavailable(error) from error

    @contextmanager
    def cursor(self) -> Iterator[Any]:
        """The driver's own cursor, for the hot path: whoever uses it commits. Raises StoreUnavailable."""
        with self._gate, self._lent_cursor() as cursor:
            yield cursor

    @contextmanager
    def _lent_cursor(self) -> Iterator[Any]:
        driver = self._engine.dialect.loaded_dbapi
        try:
            raw = self._pool.raw_connection()
        except (SQLAlchemyError, driver.Error) as error:
            raise self._unavailable(error) from error
        try:
            self.dialect.lend(raw.driver_connection)
            with closing(raw.cursor()) as cursor:
                yield cursor
            self.dialect.take_back(raw.driver_connection)
        except BaseException as error:
            # What state the connection is in is nobody's guess: away with it.
            raw.invalidate(error if isinstance(error, Exception) else None)
            if not isinstance(error, driver.Error):
                raise
            if isinstance(error, driver.ProgrammingError) and self.schema_revision() is None:
                raise SchemaMismatch(f"{self.url}: the store has no tables: run `penstock db upgrade`") from error
            if self.dialect.was_undone(error) or isinstance(
                error, (driver.OperationalError, driver.InterfaceError, driver.InternalError)
            ):
                raise self._unavailable(error) from error
            raise
        finally:
            raw.close()

    @contextmanager
    def _connection(self, *, read_only: bool = False) -> Iterator[Connection]:
        with self._gate, self._pool.connect() as raw:
            connection = raw.execution_options(**(self.dialect.reading if read_only else {}))
            try:
                with connection.begin():
                    yield connection
            except (OperationalError, InterfaceError, InternalError):
                connection.invalidate()  # it may be the connection: one that was opened read-only stays so
                raise

    def _unavailable(self, error: Exception) -> StoreUnavailable:
        cause = (error.orig if isinstance(error, DBAPIError) else None) or error
        kind = Undone if self.dialect.was_undone(cause) else StoreUnavailable
        return kind(f"{self.url}: {type(cause).__name__}: {str(cause).strip() or 'no answer'}")
