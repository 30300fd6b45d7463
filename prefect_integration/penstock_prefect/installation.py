"""The engine of this process, as this Prefect installation is configured."""

from __future__ import annotations

import atexit
import threading
from typing import TYPE_CHECKING

from prefect.logging import get_logger

from penstock_prefect import asking, probing
from penstock_prefect.claims import HOST
from penstock_prefect.settings import settings

if TYPE_CHECKING:
    from penstock.engine import Engine
    from penstock.settings import Settings

log = get_logger("penstock")


class _Engines:
    """In practice one, made at the first claim."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engines: dict[tuple[str, str, Settings], Engine] = {}
        self._said_inactive = False

    def get(self) -> Engine | None:
        here = settings()
        url = here.configured_store_url
        if url is None:
            self._say_inactive()
            return None
        key = (url, here.deployment_name, here.figures)
        if (known := self._engines.get(key)) is not None:
            return known
        with self._lock:
            if key not in self._engines:
                self._engines[key] = _connected(*key)
            return self._engines[key]

    def _say_inactive(self) -> None:
        if not self._said_inactive:
            self._said_inactive = True
            log.warning(
                "Penstock is inactive, nothing is limited: no store is configured. Set "
                "PREFECT_INTEGRATIONS_PENSTOCK_STORE_URL, …_STORE_BLOCK or PENSTOCK_STORE_URL"
            )


def _connected(url: str, deployment: str, figures: Settings) -> Engine:
    """An engine on a store that exists (`lazy`): a new one would have no limits, so where a volume is not mounted every
    task would run unlimited.
    """
    from penstock.connection import connect  # noqa: PLC0415  # SQLAlchemy loads here, not at import

    if settings().hold_while_suspended:
        probing.watch()  # no process stands behind a run that is suspended
    engine = connect(
        url, host=HOST, deployment=deployment, settings=figures, fingerprint=asking.own_server(), lazy=True
    )
    # Slots of a process that ends in good order come back at once, not after its session's TTL.
    atexit.register(engine.close)
    return engine


_engines = _Engines()


def engine() -> Engine | None:
    """The engine of this process, connected at first use; None without a store, which is said once in the log.

    Raises StoreUnavailable or SchemaMismatch: a store that is configured and not there never means "unlimited".
    """
    return _engines.get()
