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

from sqlalchemy import ColumnElement, Connection, Engine, insert, select, update
from sqlalchemy.exc import (
    DBAPIError,
    InterfaceError,
    InternalError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from penstock.errors import ClaimError, MissingRight, PenstockError, SchemaMismatch, StoreUnavailable
from penstock.settings import StoreTimes
from penstock.store import tables as t
from penstock.store.dialects import dialect_for, shown_url, without_secrets
from penstock.store.forking import ForkGate
from penstock.store.writing import Cursor, Syntax

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")
UNDONE_TRIES = 10
UPGRADE_SECONDS = 60.0
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
        self.url = shown_url(self._given)
        self.times = times or StoreTimes()
        self._clock = self.dialect.now()
        self.clock_shift = 0  # µs on top of the database's clock, for tests: none sleeps for an expiry
        with self._opening():
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
    def upkeep(self) -> bool:
        """Whether this thread is within `as_upkeep`."""
        return getattr(self._thread, "upkeep", False)

    @property
    def _pool(self) -> Engine:
        return self._upkeep_engine if self.upkeep else self._engine

    @property
    def _driver(self) -> Any:
        """The driver's module, for its errors."""
        return self._engine.dialect.loaded_dbapi

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
                return self._revision(connection)
        except SQLAlchemyError as error:
            raise self._unavailable(error) from error

    def _revision(self, connection: Connection) -> str | None:
        if not self._engine.dialect.has_table(connection, t.VERSION_TABLE):
            return None
        revision: str | None = connection.exec_driver_sql(
            f"SELECT version_num FROM {t.VERSION_TABLE}"  # a constant
        ).scalar()
        return revision

    def upgrade(self) -> None:
        """Create the tables, or bring them to this version; tables that are newer and work with it stay as they are.

        Raises SchemaMismatch for newer ones that do not, StoreUnavailable where others hold the tables for a minute,
        MissingRight.
        """
        until = time.monotonic() + UPGRADE_SECONDS
        while True:
            try:
                return self._upgrade()
            except SQLAlchemyError as error:
                cause = getattr(error, "orig", None) or error
                why = self._unavailable(error)
                if isinstance(why, MissingRight):
                    raise MissingRight(
                        "`penstock db upgrade` creates and alters tables, run it with the URL of a user who may, "
                        f"their owner; {why}"
                    ) from error
                blocked = isinstance(why, Undone) or self.dialect.was_blocked(cause)
                if not blocked or time.monotonic() > until:
                    raise why from error
            time.sleep(random.uniform(0.05, 0.5))  # noqa: S311  # jitter, not a secret; those who claim go on meanwhile

    def _upgrade(self) -> None:
        from penstock.store.migrations import upgrade  # noqa: PLC0415  # Alembic is slow to import, and rarely needed

        # Two upgrades at once: the second finds the work done.
        with self._connection() as connection, self.dialect.upgrading(connection):
            before = self._revision(connection)
            if before is None or before < t.REVISION:
                upgrade(connection)
                self._bar_those_too_old(connection, before)
                return
        self.check_schema()

    def _bar_those_too_old(self, connection: Connection, before: str | None) -> None:
        """Where those who worked with the tables before may not go on: a new version of the configuration, with the
        same content. Nobody is admitted under the one he has read, and who reads it anew looks at the tables first.
        """
        works_from = select(t.schema.c.works_from).where(t.schema.c.revision == t.REVISION)
        if before is None or before >= (connection.scalar(works_from) or t.REVISION):
            return
        tx = Transaction(connection, self._clock, self.clock_shift, self.dialect.syntax)
        known = select(t.configuration.c.document).where(t.configuration.c.version == tx.version)
        row = {"document": connection.scalar(known) or {}, "changed_by": "penstock db upgrade", "changed_from": before}
        connection.execute(insert(t.configuration), {"version": tx.version + 1, "changed_at": tx.now, **row})
        settled = t.meta.c.settled_version + 1
        connection.execute(update(t.meta).values(configuration_version=tx.version + 1, settled_version=settled))

    def check_schema(self) -> None:
        """Raises SchemaMismatch unless this version works with the tables; SQLite's are made or upgraded instead.

        Tables that are older or newer and work with it all the same stay as they are.
        """
        if not self._create and self.dialect.is_missing(self._given):
            raise StoreUnavailable(
                f"{self.url}: the store's file is not there; whoever claims does not make one, for it would have no "
                "limits; if it never was, run `penstock db upgrade`"
            )
        revision = self.schema_revision()
        if revision is None or revision < t.OLDEST:
            if not (self.dialect.upgrades_itself and self._create):
                raise SchemaMismatch(
                    f"{self.url}: the store's tables are missing or older (schema {revision or 'none'}, this version "
                    f"works with {t.OLDEST} to {t.REVISION}): run {self._remedy(revision)}"
                )
            self.upgrade()
        elif revision > t.REVISION and (works_from := self._works_from(revision)) > t.REVISION:
            raise SchemaMismatch(
                f"{self.url}: the store is newer (schema {revision}, for versions from {works_from} on; this one is of "
                f"{t.REVISION}): upgrade Penstock here"
            )

    def _remedy(self, revision: str | None) -> str:
        elsewhere = None
        if revision is None:
            with self._connection(read_only=True) as connection:
                elsewhere = self.dialect.elsewhere(connection)
        return "`penstock db upgrade`" if elsewhere is None else f"`penstock db upgrade`; or, {elsewhere}"

    @again_if_undone
    def _works_from(self, revision: str) -> str:
        """The oldest Penstock, by its revision, that works with tables of that revision."""
        with self.transaction(read_only=True) as tx:
            works_from = select(t.schema.c.works_from).where(t.schema.c.revision == revision)
            return tx.connection.scalar(works_from) or revision

    @contextmanager
    def transaction(self, *, read_only: bool = False, grant_lock: bool = False) -> Iterator[Transaction]:
        """A transaction that commits at the end of the block. Raises StoreUnavailable for what the database refuses."""
        try:
            with self._connection(read_only=read_only) as connection:
                if grant_lock:
                    self.dialect.grant_lock(connection)
                yield Transaction(connection, self._clock, self.clock_shift, self.dialect.syntax)
        except (SQLAlchemyError, self._driver.Error) as error:
            if (meant := self._meant(error)) is not None:
                raise meant from error
            raise

    @contextmanager
    def cursor(self) -> Iterator[Any]:
        """The driver's own cursor, for the hot path: whoever uses it commits. Raises StoreUnavailable."""
        with self._gate, self._lent_cursor() as cursor:
            yield cursor

    @contextmanager
    def _lent_cursor(self) -> Iterator[Any]:
        try:
            with self._opening():
                raw = self._pool.raw_connection()
        except (SQLAlchemyError, self._driver.Error) as error:
            raise self._unavailable(error) from error
        try:
            self.dialect.lend(raw.driver_connection)
            with closing(raw.cursor()) as cursor:
                yield cursor
            self.dialect.take_back(raw.driver_connection)
        except BaseException as error:
            # What state the connection is in is nobody's guess: away with it.
            raw.invalidate(error if isinstance(error, Exception) else None)
            if isinstance(error, self._driver.Error) and (meant := self._meant(error)) is not None:
                raise meant from error
            raise
        finally:
            raw.close()

    @contextmanager
    def _connection(self, *, read_only: bool = False) -> Iterator[Connection]:
        with self._gate, self._connected() as raw:
            connection = raw.execution_options(**(self.dialect.reading if read_only else {}))
            try:
                with connection.begin():
                    try:
                        yield connection
                    except self._driver.Error as error:  # by the driver's own cursor
                        connection.invalidate(error)  # a rollback that fails, too, would hide why
                        raise
            except (OperationalError, InterfaceError, InternalError):
                connection.invalidate()  # it may be the connection: one that was opened read-only stays so
                raise

    def _connected(self) -> Connection:
        try:
            with self._opening():
                return self._pool.connect()
        except self._driver.Error as error:  # of what is said to a new connection first
            raise self._unavailable(error) from error

    @contextmanager
    def _opening(self) -> Iterator[None]:
        """What drivers make of options in the URL that they do not know, or whose values they cannot read."""
        try:
            yield
        except (TypeError, ValueError, AttributeError, LookupError, OSError) as error:
            why = without_secrets(f"{type(error).__name__}: {error}", self._given)
            raise StoreUnavailable(
                f"{self.url}: cannot be opened by what the URL says: correct its options ({why})"
            ) from None

    def _meant(self, error: Exception) -> PenstockError | None:
        """What an error of the driver's or of SQLAlchemy's comes to; None: a statement, or what was done, is wrong."""
        driver, cause = self._driver, (error.orig if isinstance(error, DBAPIError) else None) or error
        if isinstance(cause, driver.DataError):
            return self._not_taken(error)
        if isinstance(cause, driver.ProgrammingError) and (named := self._named(cause)) is not None:
            return named
        away = (PoolTimeout, driver.OperationalError, driver.InterfaceError, driver.InternalError)
        return self._unavailable(error) if isinstance(cause, away) or self.dialect.was_undone(cause) else None

    def _named(self, cause: BaseException) -> PenstockError | None:
        """The reason why the database did not understand a statement, or did not want to; None: the statement."""
        if (remedy := self.dialect.missing_right(cause, self._given, self._engine)) is not None:
            return self._denied(cause, remedy)
        if self.schema_revision() is None:
            return SchemaMismatch(f"{self.url}: the store has no tables: run `penstock db upgrade`")
        return None

    def _denied(self, cause: BaseException, remedy: str) -> MissingRight:
        why = without_secrets(str(cause).strip(), self._given)
        return MissingRight(f"{self.url}: a right is missing: {why}: {remedy}")

    def _not_taken(self, error: Exception) -> ClaimError:
        cause = (error.orig if isinstance(error, DBAPIError) else None) or error
        why = without_secrets(str(cause).strip(), self._given)
        return ClaimError(f"{self.url}: a name or number that the database does not take: {why}")

    def _unavailable(self, error: Exception) -> StoreUnavailable:
        cause = (error.orig if isinstance(error, DBAPIError) else None) or error
        if (remedy := self.dialect.missing_right(cause, self._given, self._engine)) is not None:
            return self._denied(cause, remedy)
        kind = Undone if self.dialect.was_undone(cause) else StoreUnavailable
        why = without_secrets(str(cause).strip(), self._given) or "no answer"
        return kind(f"{self.url}: {type(cause).__name__}: {why}")
