"""The limits of pools, which Dagster keeps in its database alone. Read and never written."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import ConfigError, Fault
from sqlalchemy import Connection, create_engine, func, inspect, select, text
from sqlalchemy import column as named_column
from sqlalchemy import table as named_table
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

DRIVERS = ("psycopg", "psycopg2", "pg8000")
CONNECT_SECONDS = 10
IN_A_HOME = ("history", "runs", "index.db")
"""Where Dagster keeps its event log's index, below its home, when it keeps it in SQLite."""

LIMITS = named_table(
    "concurrency_limits", named_column("concurrency_key"), named_column("limit"), named_column("using_default_limit")
)
SLOTS = named_table("concurrency_slots", named_column("concurrency_key"), named_column("deleted"))


@dataclass(frozen=True, slots=True)
class PoolLimit:
    """`by_default`: nobody set it, Dagster noted the default of that time when it saw the pool."""

    name: str
    limit: int
    by_default: bool


def read(url: str) -> list[PoolLimit]:
    """The pools that have a limit in Dagster's database, by name. Raises ConfigError, without any password.

    `url`: SQLAlchemy's, of SQLite or PostgreSQL; or the path of an SQLite file or of a DAGSTER_HOME.
    """
    with _connected(url) as connection:
        tables = set(inspect(connection).get_table_names())
        if "concurrency_slots" not in tables:
            raise ConfigError(
                [
                    Fault(
                        "no table concurrency_slots: this is not the database of Dagster's event log, or one before 1.2"
                    )
                ]
            )
        rows = _of_limits(connection) if "concurrency_limits" in tables else []
        # Dagster itself takes them from the slots while the newer table is empty.
        rows = rows or _of_slots(connection)
    for row in rows:
        # SQLite keeps any value in any column.
        if not isinstance(row.name, str) or type(row.limit) is not int:
            message = (
                f"the table concurrency_limits holds {row.name!r} with a limit of {row.limit!r}, which is no number"
            )
            raise ConfigError([Fault(message)])
    return sorted(rows, key=lambda row: row.name)


def in_home(home: Path) -> Path | None:
    """The SQLite file of a DAGSTER_HOME, if it has one."""
    path = home.joinpath(*IN_A_HOME)
    return path if path.exists() else None


def _of_limits(connection: Connection) -> list[PoolLimit]:
    columns = {column["name"] for column in inspect(connection).get_columns("concurrency_limits")}
    marked = "using_default_limit" in columns
    wanted = [LIMITS.c.concurrency_key, LIMITS.c.limit, *([LIMITS.c.using_default_limit] if marked else [])]
    rows = connection.execute(select(*wanted)).all()
    return [PoolLimit(row[0], row[1], bool(row[2]) if marked else False) for row in rows]


def _of_slots(connection: Connection) -> list[PoolLimit]:
    counted = (
        select(SLOTS.c.concurrency_key, func.count())
        .where(SLOTS.c.deleted == text("false" if connection.dialect.name == "postgresql" else "0"))
        .group_by(SLOTS.c.concurrency_key)
    )
    return [PoolLimit(name, count, by_default=False) for name, count in connection.execute(counted)]


@contextlib.contextmanager
def _connected(given: str) -> Iterator[Connection]:
    """A connection that cannot write."""
    try:
        url = _read_only(given)
    except OSError as error:  # of a path that no file can have
        raise ConfigError([Fault(f"cannot be read: {error.strerror}")]) from None
    arguments = {"connect_timeout": CONNECT_SECONDS} if url.drivername.startswith("postgresql+psycopg") else {}
    try:
        engine = create_engine(url, poolclass=NullPool, connect_args=arguments)
        if engine.dialect.name == "postgresql":
            engine = engine.execution_options(postgresql_readonly=True)
        with engine.connect() as connection:
            yield connection
    except (SQLAlchemyError, ImportError) as error:
        why = " ".join(str(getattr(error, "orig", None) or error).split())
        if url.password:  # a driver may repeat what it was given
            why = why.replace(url.password, "***")
        shown = url.render_as_string(hide_password=True)
        raise ConfigError([Fault(f"Dagster's database {shown} cannot be read: {why}")]) from None


def _read_only(given: str) -> URL:
    """The URL by which to connect. Raises ConfigError."""
    if "://" not in given:
        path = Path(given)
        found = in_home(path) if path.is_dir() else path
        if found is None or not found.is_file():
            raise ConfigError([Fault(f"no SQLite file at {path.joinpath(*IN_A_HOME) if path.is_dir() else path}")])
        return _of_file(found)
    try:
        url = make_url(given)
    except (ArgumentError, ValueError):
        raise ConfigError([Fault("not a database URL; such as postgresql://user@host/dagster is expected")]) from None
    kind = url.get_backend_name()
    if kind == "sqlite" and url.database and Path(url.database).is_file():
        return _of_file(Path(url.database))
    if kind == "sqlite":
        raise ConfigError([Fault(f"no SQLite file at {url.database}")])
    if kind != "postgresql":
        raise ConfigError([Fault(f"{kind} found; Dagster's database is read from SQLite and PostgreSQL")])
    if "+" in url.drivername:
        return url
    driver = next((name for name in DRIVERS if importlib.util.find_spec(name)), None)
    if driver is None:
        raise ConfigError([Fault('no driver for PostgreSQL is installed: pip install "penstock[postgresql]"')])
    return url.set(drivername=f"postgresql+{driver}")


def _of_file(path: Path) -> URL:
    # Without its write-ahead log beside it nobody has it open, and SQLite need make no files of its own to read it.
    log = path.with_name(path.name + "-wal")
    query = {"uri": "true", "mode": "ro"} | ({} if log.exists() else {"immutable": "1"})
    return URL.create("sqlite", database=path.resolve().as_uri(), query=query)
