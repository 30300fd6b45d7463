"""From a URL to an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock import settings as installation
from penstock.engine import Engine
from penstock.store.sql import SqlStore

if TYPE_CHECKING:
    from penstock.settings import Settings


def connect(
    url: str | None = None, *, host: str = "process", deployment: str | None = None, settings: Settings | None = None
) -> Engine:
    """See `penstock.connect`."""
    store = SqlStore(installation.store_url(url))
    store.check_schema()
    return Engine(store, host=host, deployment=installation.deployment(deployment, host=host), settings=settings)
