"""From a URL to an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock import settings as installation
from penstock.engine import Engine
from penstock.store.sql import SqlStore

if TYPE_CHECKING:
    import pluggy

    from penstock.settings import Settings


def connect(
    url: str | None = None,
    *,
    host: str = "process",
    deployment: str | None = None,
    settings: Settings | None = None,
    plugins: pluggy.PluginManager | None = None,
) -> Engine:
    """See `penstock.connect`; `plugins` are those of a host, else the installed ones."""
    store = SqlStore(installation.store_url(url))
    store.check_schema()
    name = installation.deployment(deployment, host=host)
    return Engine(store, host=host, deployment=name, settings=settings, plugins=plugins)
