"""One real Airflow for all tests that need one, in the environment that runs them."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import pytest
from airflow_recorded import forget_intervals, recorded
from airflow_tests_settings import CELERY, DAGS, RECIPES, SETTINGS, WITH_RECIPES, limits_are
from airflow_trace import Trace
from penstock import connect
from penstock.demo.airflow_host import AirflowHost
from penstock.engine import Engine
from penstock.store.sql import SqlStore
from proxy import TcpProxy
from servers import fresh_database, missing
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

AUTHORS_DAG_IDS = [
    "blocked",
    "exclusive",
    "hostile",
    "in_rooms",
    "of_a_team_1",
    "of_a_team_2",
    "own_pools",
    "said_of_tasks",
]
DAG_IDS = [
    *AUTHORS_DAG_IDS,
    "filled",
    "begun_again",
    "deferring",
    "endless",
    "kinds",
    "exempt_setup",
    "live_empty",
    "outcomes",
    "runs",
    "shared",
    "thirty_defer",
    "withdrawn",
    "within",
]


class WithoutAirflow(pytest.Module):
    """A module of tests that cannot even be imported here."""

    def collect(self) -> NoReturn:
        missing("Airflow is not installed in this environment: run `tox -e airflow`")
        raise AssertionError  # `missing` does not return


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if importlib.util.find_spec("airflow") is not None:
        return None
    return WithoutAirflow.from_parent(parent, path=module_path)


STORES = ["postgresql", "sqlite"]


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
    """An engine beside Airflow on the same store."""
    with connect(store_url) as engine:
        yield engine


@pytest.fixture(scope="module")
def limits(engine: Engine, request: pytest.FixtureRequest) -> None:
    """The LIMITS of the module are in force."""
    limits_are(engine, request.module.LIMITS)


@pytest.fixture(scope="session")
def store_proxy(store_url: str) -> Iterator[TcpProxy | None]:
    """What stands between Airflow and a store that is on a server; the tests' own engine goes past it."""
    url = make_url(store_url)
    if url.host is None:
        yield None
        return
    with TcpProxy(url.host, url.port or 5432) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def intervals_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("intervals")


@pytest.fixture(scope="session")
def started_host(
    store_url: str,
    store_proxy: TcpProxy | None,
    postgresql_url: str,
    intervals_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[AirflowHost]:
    """Airflow on a metadata database of its own, on PostgreSQL as in production.

    A scheduler that is killed may leave a transaction open: its connection lives on in the workers that it had forked,
    and the next scheduler enqueues nothing as long as the locks of that one are held.
    The one whose store is an SQLite file has the recipes, too: other tests leave it more time.
    """
    dag_ids, settings = DAG_IDS, SETTINGS | CELERY | {"INTERVALS_FOLDER": str(intervals_folder)}
    if make_url(store_url).host is None:
        dag_ids, settings = [*DAG_IDS, *(path.stem for path in RECIPES.glob("*.py"))], settings | WITH_RECIPES
    if store_proxy is not None:
        proxied = make_url(store_url).set(host="127.0.0.1", port=store_proxy.port)
        store_url = proxied.render_as_string(hide_password=False)
    with (
        fresh_database(postgresql_url) as metadata_url,
        AirflowHost(
            Path(sys.executable).parent,
            tmp_path_factory.mktemp("airflow"),
            DAGS,
            store_url=store_url,
            deployment="tests",
            metadata_url=metadata_url,
            environment=settings,
            users={"ada": "admin", "vera": "viewer"},
        ) as host,
    ):
        end_idle_transactions(metadata_url)
        host.start(dag_ids)
        if CELERY:
            host.processes.start("celery-worker", [Path(sys.executable).with_name("airflow"), "celery", "worker"])
        for pool in ("api", "database", "narrow", "shared"):
            host.create_pool(pool, 16)  # wide: it is Penstock that limits
        yield host


def end_idle_transactions(url: str) -> None:
    """Have this PostgreSQL database end each connection whose transaction idles for 40 s.

    Not sooner: of a server that hardly runs among the first thirty tasks, all did for 20 s.
    """
    engine = create_engine(url)
    with engine.begin() as connection:
        name = make_url(url).database
        connection.execute(text(f"ALTER DATABASE {name} SET idle_in_transaction_session_timeout = '40s'"))
    engine.dispose()


@pytest.fixture(scope="session")
def trace(started_host: AirflowHost) -> Iterator[Trace]:
    """Every state that a task instance or a run of the host takes from now on."""
    assert started_host.metadata_url is not None
    with Trace(started_host.metadata_url) as trace:
        yield trace


@pytest.fixture
def host(started_host: AirflowHost, limits: None, request: pytest.FixtureRequest) -> Iterator[AirflowHost]:
    """A real Airflow with the DAGs of `dags/`, under the module's LIMITS; when the test fails its logs are printed."""
    failures = request.session.testsfailed
    yield started_host
    if request.session.testsfailed > failures:
        print(started_host.logs())


Intervals = Callable[[str], list[tuple[float, float]]]


@pytest.fixture
def intervals(intervals_folder: Path) -> Iterator[Intervals]:
    """Name → the intervals recorded under it in this test, (began, ended) by the monotonic clock."""

    def named(name: str) -> list[tuple[float, float]]:
        return [(one["began"], one["ended"]) for one in recorded(intervals_folder) if one["name"] == name]

    yield named
    forget_intervals(intervals_folder)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests of one host go to one worker of pytest-xdist: no host is started twice, and each is there for one test."""
    from xdist.scheduler import LoadScopeScheduling

    class ByHost(LoadScopeScheduling):
        """The tests that need a host are those that say which store it has; all others go by their file."""

        def _split_scope(self, nodeid: str) -> str:
            store = re.search(rf"[\[-]({'|'.join(STORES)})[-\]]", nodeid)
            return store[1] if store else nodeid.partition("::")[0]

    return ByHost(config, log)
