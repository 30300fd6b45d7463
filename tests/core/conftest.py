"""Stores of every kind, and engines on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from penstock import changes
from penstock.config import Concurrency
from penstock.engine import Engine
from penstock.hooks import plugin_manager
from penstock.settings import Settings
from penstock.store.memory import MemoryStore
from penstock.store.sql import SqlStore
from penstock.store.tables import meta, metadata
from servers import fresh_database
from sqlalchemy import create_engine

SQL_KINDS = ["sqlite", "postgresql", "mariadb"]
KINDS = ["memory", *SQL_KINDS]


@pytest.fixture(params=KINDS)
def store_kind(request: pytest.FixtureRequest) -> str:
    """Which store a test runs on; tests that need real processes narrow it to the SQL ones."""
    kind: str = request.param
    return kind


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


@pytest.fixture
def store(store_kind: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """An empty store."""
    if store_kind == "memory":
        yield MemoryStore()
        return
    sql = SqlStore(request.getfixturevalue("store_url"))
    sql.check_schema()
    yield sql
    pool: Any = sql._engine.pool
    assert pool.checkedout() == 0, "a connection leaked"
    sql.close()


@pytest.fixture
def new_engine(store: Any) -> Iterator[Callable[..., Engine]]:
    """Engines of several processes, as far as one process can play them: each has its own session."""
    engines: list[Engine] = []

    def new(*plugins: object, **arguments: Any) -> Engine:
        arguments.setdefault("settings", Settings(store_retry_seconds=0))
        engine = Engine(store, plugins=plugin_manager(*plugins), **arguments)
        engines.append(engine)
        return engine

    yield new
    for engine in engines:  # as Engine.close does, but the store is everybody's
        engine.wakeups.close()
        if engine._threads is not None:
            engine._threads.shutdown()
        engine._session.close()


@pytest.fixture
def engine(new_engine: Callable[..., Engine]) -> Engine:
    """One engine."""
    return new_engine()


@pytest.fixture
def configure(engine: Engine) -> Callable[..., None]:
    """Put a `concurrency:` block in force."""

    def put(**block: Any) -> None:
        version, _ = engine.configuration(fresh=True)
        changes.apply(engine, Concurrency.model_validate(block), expected_version=version)

    return put
