"""The environments of both hosts, and a PostgreSQL that may be restarted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from host_environments import bins, home
from own_servers import OwnPostgresql, own_postgresql

__all__ = ["bins", "home"]


@pytest.fixture
def database() -> Iterator[OwnPostgresql]:
    """The server of the store, with nothing else on it."""
    with own_postgresql() as server:
        yield server
