"""One real Airflow for all tests that need one, in the environment that runs them."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import pytest
from penstock import changes, connect
from penstock.config import Concurrency
from penstock.demo.airflow_host import AirflowHost
from penstock.engine import Engine
from penstock.store.sql import SqlStore
from servers import fresh_database, missing

DAGS = Path(__file__).with_name("dags")
AUTHORS_DAG_IDS = ["blocked", "exclusive", "in_rooms", "of_a_team_1", "of_a_team_2", "own_pools", "said_of_tasks"]
DAG_IDS = [*AUTHORS_DAG_IDS, "deferring", "endless", "kinds", "outcomes", "runs", "within"]
LIMITS = {
    "pools": {"default_limit": 1, "limits": {"database": 2, "narrow": 1}},
    "runs": {
        "max_concurrent_runs": 2,
        "tag_concurrency_limits": [{"key": "team", "value": "analytics", "limit": 1}],
    },
}
SETTINGS = {
    "AIRFLOW__PENSTOCK__POOLS": "api",
    "AIRFLOW__PENSTOCK__RUN_TAG_KEYS": "team",
    "AIRFLOW__PENSTOCK__POOL_PER_OP": "own_pools.*",
    "AIRFLOW__PENSTOCK__SHORT_BLOCK_SECONDS": "1",
}


class WithoutAirflow(pytest.Module):
    """A module of tests that cannot even be imported here."""

    def collect(self) -> NoReturn:
        missing("Airflow is not installed in this environment: run `tox -e airflow`")
        raise AssertionError  # `missing` does not return


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if importlib.util.find_spec("airflow") is not None:
        return None
    return WithoutAirflow.from_parent(parent, path=module_path)


STORES = ["sqlite", "postgresql"]


@pytest.fixture(scope="session", params=STORES)
def store_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An empty store for the limits."""
    with ExitStack() as stack:
        if request.param == "postgresql":
            url = stack.enter_context(fresh_database(request.getfixturevalue("postgresql_url")))
            store = SqlStore(url)
            store.upgrade()
            store.close()
        else:
            url = f"sqlite:///{tmp_path_factory.mktemp('store') / 'penstock.db'}"
        yield url


@pytest.fixture(scope="session")
def engine(store_url: str) -> Iterator[Engine]:
    """An engine beside Airflow on the same store, with the limits applied."""
    with connect(store_url) as engine:
        changes.apply(engine, Concurrency.from_document(LIMITS), expected_version=0)
        yield engine


@pytest.fixture(scope="session")
def intervals_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("intervals")


@pytest.fixture(scope="session")
def started_host(
    engine: Engine,
    store_url: str,
    postgresql_url: str,
    intervals_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[AirflowHost]:
    """Airflow on a metadata database of its own, on PostgreSQL as in production."""
    with (
        fresh_database(postgresql_url) as metadata_url,
        AirflowHost(
            Path(sys.executable).parent,
            tmp_path_factory.mktemp("airflow"),
            DAGS,
            store_url=store_url,
            deployment="tests",
            metadata_url=metadata_url,
            environment=SETTINGS | {"INTERVALS_FOLDER": str(intervals_folder)},
        ) as host,
    ):
        host.start(DAG_IDS)
        for pool in ("api", "database", "narrow"):
            host.create_pool(pool, 16)  # wide: it is Penstock that limits
        yield host


@pytest.fixture
def host(started_host: AirflowHost, request: pytest.FixtureRequest) -> Iterator[AirflowHost]:
    """A real Airflow with the DAGs of `dags/`; when the test fails its logs are printed."""
    failures = request.session.testsfailed
    yield started_host
    if request.session.testsfailed > failures:
        print(started_host.logs())


Intervals = Callable[[str], list[tuple[float, float]]]


@pytest.fixture
def intervals(intervals_folder: Path) -> Iterator[Intervals]:
    """Name → the intervals recorded under it in this test, (began, ended) by the monotonic clock."""

    def recorded(name: str) -> list[tuple[float, float]]:
        read = [json.loads(path.read_text()) for path in intervals_folder.glob("*.json")]
        return [(interval["began"], interval["ended"]) for interval in read if interval["name"] == name]

    yield recorded
    for path in intervals_folder.iterdir():
        path.unlink()
