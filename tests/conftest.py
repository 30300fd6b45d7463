"""Fixtures that every world shares."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from servers import mysql_server, postgresql_server

TABLES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """A PostgreSQL server."""
    with postgresql_server() as url:
        yield url


@pytest.fixture(scope="session")
def mysql_url() -> Iterator[str]:
    """A MariaDB or MySQL server."""
    with mysql_server() as url:
        yield url


@pytest.fixture(scope="session")
def tables(pytestconfig: pytest.Config) -> list[str]:
    """Tables of what was measured, to be printed at the end of the session."""
    return pytestconfig.stash.setdefault(TABLES, [])


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist hands its tables over."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["tables"] = session.config.stash.get(TABLES, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash.setdefault(TABLES, []).extend(getattr(node, "workeroutput", {}).get("tables", []))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for table in config.stash.get(TABLES, []):
        terminalreporter.write_line(f"\n{table}")
