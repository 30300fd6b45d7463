"""What this Airflow installation says about itself in `[penstock]`, and the engine of this process."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast, get_args

from penstock import settings
from penstock.errors import ConfigError, Fault, StoreUnavailable

from penstock_airflow import asking, connections
from penstock_airflow.configuration import SECTION, Configuration
from penstock_airflow.ways import Way

if TYPE_CHECKING:
    from penstock.engine import Engine

log = logging.getLogger("penstock.airflow")
T = TypeVar("T")
_RETRY_SECONDS = (0.2, 5.0)


@dataclass(frozen=True, slots=True)
class Installation:
    """The settings of `[penstock]`. Neither `store_url` nor `conn_id` means inactive. Raises ConfigError on what
    cannot be.

    `waiting_by_pool` are pairs (glob, way); the first that matches a pool's name counts.
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
    waiting: Way = "defer"
    waiting_by_pool: tuple[tuple[str, Way], ...] = ()
    triggerer_queues: tuple[str, ...] = ("*",)
    reschedule_seconds: float = 30.0
    release_while_deferred: tuple[str, ...] = ()
    exempt_setup_teardown: bool = False
    enforcement: settings.Enforcement = "enforce"
    on_store_error: settings.OnStoreError = "wait"
    store_retry_seconds: float = 600.0

    def __post_init__(self) -> None:
        bounds = {
            "short_block_seconds": (0, 3600),
            "min_deferral_seconds": (0, 3600),
            "session_ttl_seconds": (1, 3600),
            # A place in the queue is kept for 300 s without a sign of life.
            "reschedule_seconds": (30, 240),
            "store_retry_seconds": (0, 86400),
        }
        faults = [
            Fault(f"{getattr(self, name):g}: seconds from {least} to {most} are expected", path=f"[{SECTION}] {name}")
            for name, (least, most) in bounds.items()
            if not least <= getattr(self, name) <= most
        ]
        chosen: list[tuple[str, str, Any]] = [
            ("waiting", self.waiting, Way),
            *(("waiting_by_pool", way, Way) for _, way in self.waiting_by_pool),
        ]
        chosen += [("enforcement", self.enforcement, settings.Enforcement)]
        chosen += [("on_store_error", self.on_store_error, settings.OnStoreError)]
        faults += [
            Fault(f"{choice!r}: one of {', '.join(get_args(choices))} is expected", path=f"[{SECTION}] {name}")
            for name, choice, choices in chosen
            if choice not in get_args(choices)
        ]
        if faults:
            raise ConfigError(faults)

    @classmethod
    def configured(cls) -> Self:
        """As Airflow's configuration has it. Raises ConfigError."""
        conf = Configuration()
        given = settings.Settings.from_environment()
        return cls(
            store_url=_store_url(conf),
            deployment=deployment(conf),
            conn_id=conf.get(SECTION, "conn_id", fallback=None),
            pools=_listed(conf.get(SECTION, "pools", fallback="")),
            run_tag_keys=_listed(conf.get(SECTION, "run_tag_keys", fallback="")),
            pool_per_op=_listed(conf.get(SECTION, "pool_per_op", fallback="")),
            short_block_seconds=conf.getfloat(SECTION, "short_block_seconds", fallback=3.0),
            min_deferral_seconds=conf.getfloat(SECTION, "min_deferral_seconds", fallback=10.0),
            session_ttl_seconds=conf.getfloat(SECTION, "session_ttl_seconds", fallback=60.0),
            waiting=cast("Way", conf.get(SECTION, "waiting", fallback="defer")),
            waiting_by_pool=_pairs(conf.get(SECTION, "waiting_by_pool", fallback="")),
            triggerer_queues=_listed(conf.get(SECTION, "triggerer_queues", fallback="*")),
            reschedule_seconds=conf.getfloat(SECTION, "reschedule_seconds", fallback=30.0),
            release_while_deferred=_listed(conf.get(SECTION, "release_while_deferred", fallback="")),
            exempt_setup_teardown=conf.getboolean(SECTION, "exempt_setup_teardown", fallback=False),
            enforcement=cast("settings.Enforcement", conf.get(SECTION, "enforcement") or given.enforcement),
            on_store_error=cast("settings.OnStoreError", conf.get(SECTION, "on_store_error") or given.on_store_error),
            store_retry_seconds=conf.getfloat(SECTION, "store_retry_seconds", fallback=600.0),
        )


def deployment(conf: Configuration | None = None) -> str:
    """What this installation is called. Raises ConfigError where that cannot be read."""
    return settings.deployment((conf or Configuration()).get(SECTION, "deployment"), host="airflow")


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


AWAY = "the store is away, nothing starts before it answers; trying again: %s"
_lock = threading.Lock()
_engines: dict[str, Engine] = {}


def engine() -> Engine:
    """The engine of this process, made at first use; a fork of it starts with a clean one (see Engine).

    The store is not asked yet. Raises ConfigError without a store: another component of this installation has one, and
    a store of our own beside it would limit nothing; StoreUnavailable where the URL cannot be used or be read now.
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
    """An engine on a store that exists (`lazy`): a new one would have no limits, so where a volume is not mounted every
    task would run unlimited.
    """
    from penstock.connection import connect  # noqa: PLC0415  # SQLAlchemy loads here, not at every parse

    figures = settings.Settings.from_environment()
    return connect(
        url,
        host="airflow",
        deployment=here.deployment,
        settings=replace(
            figures,
            session_ttl_seconds=here.session_ttl_seconds,
            pool_per_op=here.pool_per_op or figures.pool_per_op,
            store_retry_seconds=here.store_retry_seconds,
            enforcement=here.enforcement,
            on_store_error=here.on_store_error,
        ),
        fingerprint=asking.own_url(),
        lazy=True,
    )


def patiently(call: Callable[[], T], *, patience_seconds: float | None = None) -> T:
    """The call's result; while the store is away tries again, and raises StoreUnavailable when patience is over.

    Patience is what `on_store_error` and `store_retry_seconds` say unless given. Nothing is admitted meanwhile: a store
    that cannot be asked never means unlimited by itself.
    """
    pauses = pauses_of_patience(patience_seconds)
    while True:
        try:
            return call()
        except StoreUnavailable as error:
            if (pause := next(pauses, None)) is None:
                raise
            log.warning(AWAY, error)
            time.sleep(pause)


def pauses_of_patience(patience_seconds: float | None = None) -> Iterator[float]:
    """For how many seconds to wait before each next try, until patience is over: see `patiently`."""
    if patience_seconds is None:
        here = installation()
        patience_seconds = here.store_retry_seconds if here.on_store_error == "wait" else 0.0
    pause, longest = _RETRY_SECONDS
    deadline = time.monotonic() + patience_seconds
    while time.monotonic() + pause <= deadline:
        yield pause
        pause = min(2 * pause, longest)


def _store_url(conf: Configuration) -> str | None:
    """What the section says comes before what the environment says to every program of Penstock."""
    own = conf.get(SECTION, "store_url", fallback=None)
    return own if own or conf.get(SECTION, "conn_id") else settings.configured_url(None)


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def _pairs(text: str | None) -> tuple[tuple[str, Way], ...]:
    """`glob=way, …`; a part without a way gets an empty one, which is a fault."""
    parts = (part.rpartition("=") for part in _listed(text))
    return tuple((glob.strip(), cast("Way", way.strip())) for glob, _, way in parts)
