"""Stores on real databases, as fixtures: a `conftest.py` imports them beside its own `store_kind`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from penstock.store.sql import SqlStore
from penstock.store.tables import meta, metadata
from servers import fresh_database
from sqlalchemy import create_engine

SQL_KINDS = ["sqlite", "postgresql", "mariadb"]


@pytest.fixture(scope="session")
def migrated(request: pytest.FixtureRequest) -> Iterator[Callable[[str], str]]:
    """The URL of a database with our tables on a server of that kind; one for the whole session."""
    urls: dict[str, str] = {}
    with ExitStack() as stack:

        def url_of(kind: str) -> str:
            if kind not in urls:
                server = request.getfixturevalue("postgresql_url" if kind == "postgresql" else "mysql_url")
                url = stack.enter_context(fresh_database(server))
                store = SqlStore(url)
                store.upgrade()
                store.close()
                urls[kind] = url
            return urls[kind]

        yield url_of


@pytest.fixture
def store_url(store_kind: str, tmp_path: Path, migrated: Callable[[str], str]) -> Iterator[str]:
    """The URL of an empty store of that kind."""
    if store_kind in ("postgresql", "mariadb"):
        empty(url := migrated(store_kind))
        yield url
    else:
        yield f"sqlite:///{tmp_path / 'penstock.db'}"


def empty(url: str) -> None:
    """Make a store as it was after its first upgrade, but that its epochs go on."""
    engine = create_engine(url)
    with engine.begin() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(table.update() if table is meta else table.delete(), _FRESH if table is meta else None)
    engine.dispose()


_FRESH = {"configuration_version": 0, "settled_version": 0}
