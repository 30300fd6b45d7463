"""The database under the SQL store: its connections, its transactions, the revision of its tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, select
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError, ProgrammingError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from penstock.errors import SchemaMismatch, StoreUnavailable
from penstock.settings import StoreTimes
from penstock.store import tables as t
from penstock.store.dialects import dialect_for


@dataclass(frozen=True, slots=True)
class Transaction:
    """One transaction: its connection, the time it began by the store's clock, the configuration version in force."""

    connection: Connection
    now: int
    version: int


class Database:
    """Connections are opened at first use and bounded by the pool. `url` is without its password."""

    def __init__(self, url: str, *, times: StoreTimes | None = None) -> None:
        self._given, self.dialect = dialect_for(url)
        self.url = self._given.render_as_string(hide_password=True)
        self.times = times or StoreTimes()
        self.clock_shift = 0  # µs on top of the database's clock, for tests: none sleeps for an expiry
        self._engine = self.dialect.engine(self._given, lock_seconds=self.times.lock_seconds)

    # -- schema ------------------------------------------------------------------------------------------------------

    def schema_revision(self) -> str | None:
        """The revision of the store's tables, None where there are none."""
        try:
            with self._connection(read_only=True) as connection:
                if not self._engine.dialect.has_table(connection, t.VERSION_TABLE):
                    return None
                revision: str | None = connection.exec_driver_sql(
                    f"SELECT version_num FROM {t.VERSION_TABLE}"  # noqa: S608  # a constant
                ).scalar()
                return revision
        except SQLAlchemyError as error:
            raise self._unavailable(error) from error

    def upgrade(self) -> None:
        """Create the tables, or bring them to this version."""
        from penstock.store.migrations import upgrade  # noqa: PLC0415  # Alembic is slow to import, and rarely needed

        try:
            with self._connection() as connection:
                self.dialect.grant_lock(connection)  # two upgrades at once: the second finds the work done
                upgrade(connection)
        except SQLAlchemyError as error:
            raise self._unavailable(error) from error

    def check_schema(self) -> None:
        """Raises SchemaMismatch unless the tables are this version's; an SQLite file is created or upgraded instead."""
        revision = self.schema_revision()
        if revision == t.REVISION:
            return
        if self.dialect.upgrades_itself and (revision is None or revision < t.REVISION):
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
                # A statement of its own: what it reads is newer than the lock.
                facts = connection.execute(
                    select(self.dialect.now().label("now"), t.meta.c.configuration_version)
                ).one()
                yield Transaction(connection, int(facts.now) + self.clock_shift, facts.configuration_version)
        except ProgrammingError as error:
            if self.schema_revision() is None:
                raise SchemaMismatch(f"{self.url}: the store has no tables: run `penstock db upgrade`") from error
            raise
        except (OperationalError, InterfaceError, InternalError, PoolTimeout) as error:
            raise self._unavailable(error) from error

    @contextmanager
    def _connection(self, *, read_only: bool = False) -> Iterator[Connection]:
        with self._engine.connect() as raw:
            connection = raw.execution_options(penstock_read_only=read_only)
            with connection.begin():
                yield connection

    def _unavailable(self, error: SQLAlchemyError) -> StoreUnavailable:
        cause = getattr(error, "orig", None) or error
        return StoreUnavailable(f"{self.url}: {type(cause).__name__}: {str(cause).strip() or 'no answer'}")
