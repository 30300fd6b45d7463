"""What a kind of database must be able to do, and which one a URL names."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from sqlalchemy import ColumnElement, Connection, Engine
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from penstock.decision import HeldSlot
from penstock.errors import StoreUnavailable
from penstock.store.asking import CONNECTIONS, Answer, Ask
from penstock.store.contract import Listener
from penstock.store.writing import Syntax


class Dialect(Protocol):
    """One kind of database. What takes a cursor is the hot path: on the driver's own, committed when it returns."""

    upgrades_itself: bool
    reading: Mapping[str, Any]
    """Execution options of a connection that only reads."""

    @property
    def syntax(self) -> Syntax:
        """How statements are written."""

    def engine(self, url: URL, *, lock_seconds: float, create: bool, connections: int = CONNECTIONS) -> Engine:
        """A pool of connections whose waits for locks are bounded. `create`: what can be made may be made."""

    def now(self) -> ColumnElement[int]:
        """The database's clock in µs since 1970, as an expression that moves on within a transaction."""

    def insert_if_absent(self, connection: Connection, table: Any, values: Any) -> bool:
        """Insert one row unless a unique key stands against it. Whether it was inserted."""

    def try_grant_lock(self, connection: Connection) -> bool:
        """Take the grant lock for the rest of the transaction, or do not."""

    def grant_lock(self, connection: Connection) -> None:
        """Take the grant lock for the rest of the transaction, waiting for it."""

    def is_missing(self, url: URL) -> bool:
        """Whether the store is a file that is not there."""

    def forks_well(self, url: URL) -> bool:
        """Whether a process may fork while it has connections, as long as the child leaves them alone."""

    def upgrading(self, connection: Connection) -> AbstractContextManager[None]:
        """Keep others from upgrading at the same time; there may be no tables yet. Waits for locks are short in it:
        whoever claims stands in line behind them.
        """

    def lend(self, raw: Any) -> None:
        """Ready the driver's connection for the hot path."""

    def take_back(self, raw: Any) -> None:
        """Leave nothing of the hot path on the driver's connection."""

    def was_undone(self, error: BaseException) -> bool:
        """Whether the database undid the transaction, and it is to be done again: see `database.Undone`."""

    def was_blocked(self, error: BaseException) -> bool:
        """Whether a lock was not to be had in time; nothing was done."""

    def missing_right(self, error: BaseException, url: URL, engine: Engine) -> str | None:
        """What gives this user the right for lack of which the database refused; None: that is not why."""

    def elsewhere(self, connection: Connection) -> str | None:
        """Where tables that cannot be seen from here are all the same, and what lets them be seen; None: nowhere."""

    def acquire(self, cursor: Any, ask: Ask) -> Answer:
        """Admit a claim, queue it, or leave nothing."""

    def acknowledge(self, cursor: Any, claim_id: str, session_id: str, *, shift: int) -> tuple[HeldSlot, ...] | None:
        """Acknowledge the grant of an op claim of this session and return its slots; None: do it step by step."""

    def release(self, cursor: Any, claim_id: str, session_id: str, *, shift: int) -> tuple[bool, bool]:
        """Free a held op claim of this session, commit, and look: whether that was done, and what `look` says.

        Nothing is done when it is not one.
        """

    def grant_simple(self, cursor: Any, *, shift: int) -> tuple[list[str] | None, bool]:
        """Grant the first waiters that want one limit alone, tell them, and look: who was granted, what `look` says.

        None: another has the grant lock. Where it takes several statements, nobody: the pass by steps does it all.
        """

    def look(self, cursor: Any) -> bool:
        """Whether a limit has both waiters and room, or drains: most often not, and one statement tells."""

    def notify(self, cursor: Any, claim_ids: Collection[str]) -> None:
        """Tell other processes that these were granted, where the database can."""

    def listen(self, url: URL, engine: Engine, session_id: str | None) -> Listener | None:
        """Hear what others notify to that session and of tickets, on a connection of its own."""


# A word that is none of these may be a password with a slip in its name.
_HARMLESS = frozenset(
    {"application_name", "channel_binding", "charset", "client_encoding", "connect_timeout", "dbname", "gssencmode"}
    | {"host", "hostaddr", "keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval", "mode"}
    | {"options", "port", "read_timeout", "ssl_ca", "ssl_capath", "ssl_cert", "ssl_check_hostname", "ssl_verify_cert"}
    | {"ssl_verify_identity", "sslcert", "sslmode", "sslrootcert", "target_session_attrs", "tcp_user_timeout"}
    | {"timeout", "unix_socket", "uri", "user", "write_timeout"}
)


def shown_url(url: URL) -> str:
    """The URL as it may be read by everybody: without its password, wherever it stands."""
    query = {name: value if name in _HARMLESS else "***" for name, value in url.query.items()}
    return url.set(query=query).render_as_string(hide_password=True).replace("=%2A%2A%2A", "=***")


def without_secrets(text: str, url: URL) -> str:
    """A driver's words, which may repeat what it was given."""
    values = [value for name, value in url.query.items() if name not in _HARMLESS]
    secrets = [url.password or "", *(one for value in values for one in ([value] if isinstance(value, str) else value))]
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return text


def dialect_for(url: str) -> tuple[URL, Dialect]:
    """The URL with its driver, and how to talk to what it names. Raises StoreUnavailable on an unusable URL."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # their text may hold a part of the password
        raise StoreUnavailable(
            "the store's URL cannot be read; write it as SQLAlchemy does: postgresql://user@host/name"
        ) from None
    match parsed.get_backend_name():
        case "sqlite":
            from penstock.store.sqlite import SqliteDialect  # noqa: PLC0415  # each driver's own needs load with it

            return parsed, SqliteDialect()
        case "postgresql":
            parsed = _with_driver(parsed, "postgresql", "psycopg", "psycopg")
            from penstock.store.postgresql import PostgresqlDialect  # noqa: PLC0415

            return parsed, PostgresqlDialect()
        case "mysql" | "mariadb" as name:
            parsed = _with_driver(parsed, name, "pymysql", "pymysql")
            from penstock.store.mysql import MysqlDialect  # noqa: PLC0415

            return parsed, MysqlDialect()
        case other:
            raise StoreUnavailable(f"no store on {other!r}: use sqlite:///, postgresql:// or mysql://")


def _with_driver(url: URL, name: str, driver: str, module: str) -> URL:
    """The URL with the one driver that Penstock works with. Raises StoreUnavailable when it is not installed."""
    if importlib.util.find_spec(module) is None:
        extra = "mysql" if driver == "pymysql" else "postgresql"
        raise StoreUnavailable(f"the store is on {name}, but no driver is installed: pip install 'penstock[{extra}]'")
    return url.set(drivername=f"{name}+{driver}")


__all__ = ["Dialect", "dialect_for", "shown_url", "without_secrets"]
