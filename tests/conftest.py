"""Fixtures that every world shares."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from servers import mysql_server, postgresql_server


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
