"""A real Prefect server for the whole session, and a fresh configuration for each test."""

from __future__ import annotations

import importlib.util
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

TTL_SECONDS = 6

if importlib.util.find_spec("prefect") is None:
    collect_ignore = [
        "test_claims.py",
        "test_host.py",
        "test_limited.py",
        "test_testing.py",
    ]  # test_environment.py says so


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectHost]:
    """A running server; its flow processes have a short TTL."""
    home = tmp_path_factory.mktemp("prefect")
    settings = {"PREFECT_INTEGRATIONS_PENSTOCK_SESSION_TTL_SECONDS": str(TTL_SECONDS)}
    url = f"sqlite:///{home / 'penstock.db'}"
    with PrefectHost(Path(sys.executable).parent, home, url, "prefect-test", settings=settings) as host:
        host.start(seconds=120)
        yield host


@pytest.fixture
def engine(host: PrefectHost) -> Iterator[Engine]:
    """An engine of the test's own on the host's store."""
    with penstock.connect(host.store_url) as engine:
        yield engine


@pytest.fixture
def configure(engine: Engine) -> Callable[..., None]:
    """Put a `concurrency:` block, given as keywords, in the place of the one in force."""

    def put(**block: Any) -> None:
        version, _ = engine.configuration(fresh=True)
        changes.apply(engine, Concurrency.model_validate(block), expected_version=version)

    return put


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failing test on the host shows what server and flows said."""
    report = yield
    host = getattr(item, "funcargs", {}).get("host")
    if report.failed and isinstance(host, PrefectHost):
        report.sections.append(("Prefect's logs", host.logs()))
    return report
