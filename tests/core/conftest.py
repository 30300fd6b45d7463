"""Stores of every kind, and engines on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from penstock import changes
from penstock.config import Concurrency
from penstock.engine import Engine
from penstock.hooks import plugin_manager
from penstock.settings import Settings
from penstock.store.memory import MemoryStore
from penstock.store.sql import SqlStore
from stores import SQL_KINDS, migrated, store_url

__all__ = ["migrated", "store_url"]
KINDS = ["memory", *SQL_KINDS]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes goes first: beside it there is time for everything else."""
    items.sort(key=lambda item: "/test_state_machine.py" not in item.nodeid)


@pytest.fixture(params=KINDS)
def store_kind(request: pytest.FixtureRequest) -> str:
    """Which store a test runs on; tests that need real processes narrow it to the SQL ones."""
    kind: str = request.param
    return kind


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
        engine.janitor.close()
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
