"""Stores, children and the record of the fault runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from own_servers import OwnServer, own_mariadb, own_postgresql
from penstock.store.sql import SqlStore
from servers import fresh_database
from stores import SQL_KINDS, migrated, store_url

from faults.children import Children
from faults.record import Record, Recorder, text_table

__all__ = ["migrated", "store_url"]


@pytest.fixture(params=SQL_KINDS)
def store_kind(request: pytest.FixtureRequest) -> str:
    """Which store a fault meets."""
    kind: str = request.param
    return kind


@pytest.fixture(scope="session")
def recorder(tables: list[str]) -> Iterator[Recorder]:
    """The figures of this session: a table at its end, and JSON for the page."""
    recorder = Recorder()
    yield recorder
    if recorder.rows:
        recorder.keep()
        tables.append(text_table(recorder.rows))


@pytest.fixture
def record_on(recorder: Recorder, request: pytest.FixtureRequest) -> Callable[[str, str], Record]:
    """What notes this test's figures on a store of that kind at that URL. The fault is the one of the file's name."""
    fault = request.path.stem.split("_")[1].upper().replace("B", "b")
    return lambda kind, url: recorder.on(fault, kind, url, request.node.name)


@pytest.fixture
def record(record_on: Callable[[str, str], Record], store_kind: str, store_url: str) -> Record:
    """What notes this test's figures on its store."""
    return record_on(store_kind, store_url)


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    """The processes of this test."""
    with Children(tmp_path) as children:
        yield children


@pytest.fixture(scope="session")
def postgresql_of_its_own() -> Iterator[OwnServer]:
    """A PostgreSQL that a fault may end or fill."""
    with own_postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def mariadb_of_its_own() -> Iterator[OwnServer]:
    """A MariaDB that a fault may end or fill."""
    with own_mariadb() as server:
        yield server


@pytest.fixture
def own_server(store_kind: str, request: pytest.FixtureRequest) -> OwnServer:
    """A server of that kind that a fault may end or fill."""
    server: OwnServer = request.getfixturevalue(f"{store_kind}_of_its_own")
    return server


@pytest.fixture
def own_url(own_server: OwnServer) -> Iterator[str]:
    """An empty store on it, durable as shipped."""
    with fresh_database(own_server.url, durable=True) as url:
        store = SqlStore(url)
        store.upgrade()
        store.close()
        yield url
