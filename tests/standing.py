"""Stores whose clocks stand still but for `clock_shift`: what two of them do can be compared to the microsecond."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from penstock.store import mysql, reaping, sqlite
from penstock.store.memory import MemoryStore
from penstock.store.sql import SqlStore
from penstock.store.tables import meta, metadata
from servers import fresh_database
from sqlalchemy import BigInteger, Engine, create_engine, event, literal_column, text

STANDING = 1_800_000_000_000_000
"""What these clocks say, in µs since 1970."""
# Nobody pulls the plug on these tests, so no commit waits for the disk.
POSTGRESQL = f"""
CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
    AS 'SELECT pg_catalog.to_timestamp({STANDING // 1_000_000})';
DO $$ BEGIN
    EXECUTE format('ALTER DATABASE %I SET search_path = public, pg_catalog', current_database());
    EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off', current_database());
END $$
"""


class StandingMemoryStore(MemoryStore):
    """The oracle."""

    def _now(self) -> int:
        return STANDING + self.clock_shift


class _StandingSyntax(mysql._Syntax):
    now = f"({STANDING} + :shift)"


class StandingStores:
    """SQL stores of one kind, one after the other, on one database that is emptied in between."""

    def __init__(self, store: SqlStore, admin: Engine, url: str) -> None:
        self.store, self._admin, self.given_url = store, admin, url

    def empty(self) -> SqlStore:
        """The store, as if it were new, but that its epochs go on."""
        with self._admin.begin() as connection:
            for table in reversed(metadata.sorted_tables):
                if table is not meta:
                    connection.execute(table.delete())
            connection.execute(meta.update().values(configuration_version=0, settled_version=0))
        self.store.clock_shift = 0
        self.store.on_granted.clear()
        self.store._jumps = reaping.ClockJumps()  # its clock is set back, which is no jump
        return self.store


@contextmanager
def standing_stores(kind: str, server_url: Callable[[str], str], folder: Path) -> Iterator[StandingStores]:
    """Of the kind `sqlite`, `postgresql` or `mariadb`; `server_url` gives the server of the latter two."""
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        if kind == "sqlite":
            url = f"sqlite:///{folder / 'standing.db'}"
            patch.setattr(sqlite, "_now", lambda: STANDING)
        else:
            url = stack.enter_context(fresh_database(server_url(kind)))
        if kind == "mariadb":
            syntax: Any = _StandingSyntax()
            patch.setattr(mysql, "SYNTAX", syntax)
            patch.setattr(mysql.MysqlDialect, "syntax", syntax)
            patch.setattr(mysql.MysqlDialect, "now", lambda _: literal_column(str(STANDING), BigInteger))
        admin = create_engine(url)
        stack.callback(admin.dispose)
        if kind == "postgresql":
            with admin.begin() as connection:
                connection.execute(text(POSTGRESQL))
            admin.dispose()  # new connections find the clock
        store = SqlStore(url)
        stack.callback(store.close)
        if kind == "sqlite":
            for pool in (admin, store._engine, store._upkeep_engine):
                event.listen(pool, "connect", lambda raw, _: raw.execute("PRAGMA synchronous = OFF"))
        store.upgrade()
        # Our own clock goes along with the store's: none of its leaps is a jump.
        patch.setattr(reaping, "steady_seconds", lambda: store.clock_shift / 1_000_000)
        yield StandingStores(store, admin, url)
