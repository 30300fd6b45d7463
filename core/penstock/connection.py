"""From a URL to an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock import settings as installation
from penstock.engine import Engine
from penstock.errors import MissingRight, StoreUnavailable
from penstock.store.dialects import dialect_for
from penstock.store.sql import SqlStore

if TYPE_CHECKING:
    import pluggy

    from penstock.settings import Settings
    from penstock.store.contract import Store


def open_store(url: str, *, create: bool) -> Store:
    """The store at `url`, unconnected yet. `penstock.testing` puts the one of the tests in this place."""
    return SqlStore(url, create=create)


def connect(
    url: str | None = None,
    *,
    host: str = "process",
    deployment: str | None = None,
    settings: Settings | None = None,
    plugins: pluggy.PluginManager | None = None,
    fingerprint: str | None = None,
    lazy: bool = False,
) -> Engine:
    """See `penstock.connect`; the rest is for hosts.

    `plugins` are the host's, else the installed ones. `fingerprint` tells this installation from another one of the
    same name, such as the URL of its API. `lazy`: the store is looked for at the first claim, whose rules of waiting
    hold while it is away, and an SQLite file that is not there is an outage, never a new store without limits.
    """
    store = open_store(installation.store_url(url), create=not lazy)
    if not lazy:
        store.check_schema()
    name = installation.deployment(deployment, host=host)
    return Engine(store, host=host, deployment=name, fingerprint=fingerprint, settings=settings, plugins=plugins)


def connect_though_away(url: str | None) -> Engine:
    """As `connect`, but a server that is away now is left to what is asked of the store later: a claim waits for it, or
    does not, as `on_store_error` says.

    Raises what `connect` raises for what does not pass by itself: a file that cannot be opened, a missing right.
    """
    url = installation.store_url(url)
    try:
        return connect(url)
    except MissingRight:
        raise
    except StoreUnavailable:
        _, dialect = dialect_for(url)
        if dialect.upgrades_itself:
            raise
        return connect(url, lazy=True)


def existing_store(url: str) -> SqlStore:
    """The store at `url` for one who only looks: an SQLite file is neither made nor upgraded by it.

    Raises StoreUnavailable where the URL cannot be used or the file is not there.
    """
    place, dialect = dialect_for(url)
    if dialect.is_missing(place):
        raise StoreUnavailable(f"{place}: the store's file is not there yet; `penstock db upgrade` makes it")
    return SqlStore(url, create=False)
