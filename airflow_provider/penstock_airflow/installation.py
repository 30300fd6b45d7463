"""What this Airflow installation says about itself in `[penstock]`, and the engine of this process."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Self, TypeVar

from penstock import settings
from penstock.errors import ConfigError, Fault, StoreUnavailable

from penstock_airflow import connections
from penstock_airflow.configuration import SECTION, Configuration

if TYPE_CHECKING:
    from penstock.engine import Engine

log = logging.getLogger("penstock.airflow")
T = TypeVar("T")
_RETRY_SECONDS = (0.2, 5.0)


@dataclass(frozen=True, slots=True)
class Installation:
    """The settings of `[penstock]`. Neither `store_url` nor `conn_id` means inactive. Raises ConfigError on impossible
    times.
    """

    store_url: str | None
    deployment: str
    conn_id: str | None = None
    pools: tuple[str, ...] = ()
    run_tag_keys: tuple[str, ...] = ()
    pool_per_op: tuple[str, ...] = ()
    short_block_seconds: float = 3.0
    min_deferral_seconds: float = 10.0
    session_ttl_seconds: float = 60.0

    def __post_init__(self) -> None:
        bounds = {"short_block_seconds": (0, 3600), "min_deferral_seconds": (0, 3600), "session_ttl_seconds": (1, 3600)}
        faults = [
            Fault(f"{getattr(self, name):g}: seconds from {least} to {most} are expected", path=f"[{SECTION}] {name}")
            for name, (least, most) in bounds.items()
            if not least <= getattr(self, name) <= most
        ]
        if faults:
            raise ConfigError(faults)

    @classmethod
    def configured(cls) -> Self:
        """As Airflow's configuration has it. Raises ConfigError."""
        conf = Configuration()
        return cls(
            store_url=_store_url(conf),
            deployment=settings.deployment(conf.get(SECTION, "deployment", fallback=None), host="airflow"),
            conn_id=conf.get(SECTION, "conn_id", fallback=None),
            pools=_listed(conf.get(SECTION, "pools", fallback="")),
            run_tag_keys=_listed(conf.get(SECTION, "run_tag_keys", fallback="")),
            pool_per_op=_listed(conf.get(SECTION, "pool_per_op", fallback="")),
            short_block_seconds=conf.getfloat(SECTION, "short_block_seconds", fallback=3.0),
            min_deferral_seconds=conf.getfloat(SECTION, "min_deferral_seconds", fallback=10.0),
            session_ttl_seconds=conf.getfloat(SECTION, "session_ttl_seconds", fallback=60.0),
        )


@cache
def store_is_configured() -> bool:
    """Whether this installation has a store; read once in each process. If not, says so in the log, once.

    A URL that cannot be read (a failing `_cmd` or secrets backend) counts as one: a DAG's parse must not fail for it,
    and the gate then fails each task with the cause, as it must not run unlimited.
    """
    try:
        conf = Configuration()
        named = _store_url(conf) or conf.get(SECTION, "conn_id")
    except ConfigError as error:
        log.warning("Penstock: the store's URL cannot be read, tasks will fail: %s", error)
        return True
    if named is None:
        log.info("Penstock is installed but inactive: no [penstock] store_url or conn_id is set: nothing is limited")
        return False
    return True


@cache
def installation() -> Installation:
    """The settings, read once in each process."""
    return Installation.configured()


_lock = threading.Lock()
_engines: dict[str, Engine] = {}


def engine() -> Engine:
    """The engine of this process, made at first use; a fork of it starts with a clean one (see Engine).

    Raises StoreUnavailable, SchemaMismatch, and ConfigError without a store: another component of this installation has
    one, and a store of our own beside it would limit nothing.
    """
    here = installation()
    with _lock:
        if (known := _engines.get(here.deployment)) is not None:
            return known
    url = store_url(here)  # not under the lock: Airflow may be asked, which may take its time
    with _lock:
        if (known := _engines.get(here.deployment)) is not None:
            return known
        return _engines.setdefault(here.deployment, _connected(here, url))


def store_url(here: Installation) -> str:
    """The URL of the settings, else of the connection that they name. Raises ConfigError, StoreUnavailable."""
    if here.store_url is not None:
        return here.store_url
    if here.conn_id is not None:
        return connections.store_url(here.conn_id)
    told = "no store_url and no conn_id in this process; set one for every component of Airflow"
    raise ConfigError([Fault(told, path=f"[{SECTION}]")])


def _connected(here: Installation, url: str) -> Engine:
    """An engine on a store that exists: a new one would have no limits, so where a volume is not mounted every task
    would run unlimited.
    """
    from penstock.connection import connect  # noqa: PLC0415  # SQLAlchemy loads here, not at every parse

    figures = settings.Settings.from_environment()
    engine = connect(
        url,
        host="airflow",
        deployment=here.deployment,
        settings=replace(
            figures,
            session_ttl_seconds=here.session_ttl_seconds,
            pool_per_op=here.pool_per_op or figures.pool_per_op,
        ),
        lazy=True,
    )
    engine.store.check_schema()
    return engine


def patiently(call: Callable[[], T], *, patience_seconds: float = settings.Settings().store_retry_seconds) -> T:
    """The call's result; while the store is away tries again, and raises StoreUnavailable when patience is over.

    Nothing is admitted meanwhile: a store that cannot be asked never means unlimited.
    """
    pause, longest = _RETRY_SECONDS
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            return call()
        except StoreUnavailable as error:
            if time.monotonic() + pause > deadline:
                raise
            log.warning("the store is away, nothing starts before it answers; trying again: %s", error)
            time.sleep(pause)
            pause = min(2 * pause, longest)


def _store_url(conf: Configuration) -> str | None:
    """What the section says comes before what the environment says to every program of Penstock."""
    own = conf.get(SECTION, "store_url", fallback=None)
    return own if own or conf.get(SECTION, "conn_id") else settings.configured_url(None)


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())
