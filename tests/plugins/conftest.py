"""Engines with plugins, on the memory store and on SQLite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from penstock.engine import Engine
from penstock.hooks import plugin_manager
from penstock.settings import Settings
from penstock.store.memory import MemoryStore
from penstock.store.sql import SqlStore

NewEngine = Callable[..., Engine]


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """An empty store."""
    if request.param == "memory":
        yield MemoryStore()
        return
    sql = SqlStore(f"sqlite:///{tmp_path / 'penstock.db'}")
    sql.check_schema()
    yield sql
    sql.close()


@pytest.fixture
def new_engine(store: Any) -> Iterator[NewEngine]:
    """Engines on one store, each with its own session; the given plugins beside the installed ones."""
    engines: list[Engine] = []

    def new(*plugins: object, **arguments: Any) -> Engine:
        arguments.setdefault("settings", Settings(store_retry_seconds=0))
        engines.append(Engine(store, plugins=plugin_manager(*plugins), **arguments))
        return engines[-1]

    yield new
    for engine in engines:
        engine.close()
