"""Real Prefect servers for the whole session: one on SQLite, one on PostgreSQL with a worker; a fresh configuration."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import penstock
import pytest
from penstock import changes
from penstock.config import Concurrency
from penstock.demo.prefect_host import PrefectHost
from penstock.engine import Engine
from penstock.store.sql import SqlStore
from prefect_runs import SERVER_SECRET, Run
from servers import fresh_database
from sqlalchemy.engine import make_url

TTL_SECONDS = 6
WORKER_TTL_SECONDS = 5

if importlib.util.find_spec("prefect") is None:
    collect_ignore_glob = ["test_[!e]*.py"]  # test_environment.py says so


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectHost]:
    """A running server; its flow processes have a short TTL."""
    home = tmp_path_factory.mktemp("prefect")
    settings = {"PREFECT_INTEGRATIONS_PENSTOCK_SESSION_TTL_SECONDS": str(TTL_SECONDS)}
    url = f"sqlite:///{home / 'penstock.db'}"
    with PrefectHost(Path(sys.executable).parent, home, url, "prefect-test", settings=settings) as host:
        host.start(seconds=120)
        yield host


@pytest.fixture(scope="session")
def database_host(postgresql_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectHost]:
    """A server with its data, and the store, on PostgreSQL. Workers of it ask for work every second."""
    home = tmp_path_factory.mktemp("prefect_database")
    settings = {
        "PREFECT_INTEGRATIONS_PENSTOCK_SESSION_TTL_SECONDS": str(WORKER_TTL_SECONDS),
        "PREFECT_INTEGRATIONS_PENSTOCK_HOLD_WHILE_SUSPENDED": "live_suspended_*",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    with fresh_database(postgresql_url) as url, fresh_database(postgresql_url) as store_url:
        store = SqlStore(store_url)
        store.upgrade()
        store.close()
        data_url = make_url(url).set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)
        host = PrefectHost(
            Path(sys.executable).parent,
            home,
            store_url,
            "database",
            settings=settings,
            database_url=data_url,
            auth=f"admin:{SERVER_SECRET}",
        )
        with host:
            host.start(seconds=240)
            yield host


@pytest.fixture(scope="session")
def work_pool(database_host: PrefectHost) -> str:
    """A work pool with a worker that runs its flows as processes, one at a time; it sees them 2 s before their time."""
    database_host.create_work_pool("limited", "penstock-process")
    database_host.start_worker("worker", "limited", "--limit", "1", "--prefetch-seconds", "2")
    return "limited"


@pytest.fixture
def engine(host: PrefectHost) -> Iterator[Engine]:
    """An engine of the test's own on the host's store."""
    with penstock.connect(host.store_url) as engine:
        yield engine


@pytest.fixture
def local_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """A store with one slot in `single` and two in `database`, which the integration uses too. No server here."""
    url = f"sqlite:///{tmp_path / 'penstock.db'}"
    monkeypatch.setenv("PREFECT_INTEGRATIONS_PENSTOCK_STORE_URL", url)
    with penstock.connect(url) as engine:
        block = {"pools": {"limits": {"single": 1, "database": 2}}}
        changes.apply(engine, Concurrency.model_validate(block), expected_version=0)
        yield engine


@pytest.fixture
def configure(engine: Engine) -> Callable[..., None]:
    """Put a `concurrency:` block, given as keywords, in the place of the one in force."""

    def put(**block: Any) -> None:
        version, _ = engine.configuration(fresh=True)
        changes.apply(engine, Concurrency.model_validate(block), expected_version=version)

    return put


@pytest.fixture
def intervals(tmp_path: Path) -> Path:
    """A file in which flows note when they were inside of what is limited."""
    path = tmp_path / "intervals"
    path.touch()
    return path


@pytest.fixture
def run(host: PrefectHost, intervals: Path) -> Run:
    """Start a process that runs a flow of a script in flows/, under this name."""

    def start(
        flow: str, name: str, settings: dict[str, str] | None = None, *, script: str = "scripts"
    ) -> subprocess.Popen[bytes]:
        path = Path(__file__).parent / "flows" / f"{script}.py"
        return host.run_flow(name, path, flow, str(intervals), name, settings=settings)

    return start


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failing test on the host shows what server and flows said."""
    report = yield
    for host in getattr(item, "funcargs", {}).values():
        if report.failed and isinstance(host, PrefectHost):
            report.sections.append(("Prefect's logs", host.logs()))
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests of one server go to one worker of pytest-xdist: no server is started twice, and limits are one test's."""
    from xdist.scheduler import LoadScopeScheduling

    class ByServer(LoadScopeScheduling):
        """A file's tests use the server that it names, or none."""

        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            source = (config.rootpath / file).read_text()
            return next((fixture for fixture in ("database_host", "PrefectHost") if fixture in source), file)

    return ByServer(config, log)
