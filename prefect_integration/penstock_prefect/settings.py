"""What concerns this Prefect installation: `PREFECT_INTEGRATIONS_PENSTOCK_*`."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase

from penstock.settings import Enforcement, OnStoreError, Settings, configured_url
from penstock.settings import deployment as deployment_name
from prefect.settings.base import PrefectBaseSettings, build_settings_config
from pydantic import Field, SecretStr

from penstock_prefect import blocks
from penstock_prefect.claims import HOST

_READ_BY = ("PREFECT_INTEGRATIONS_PENSTOCK_", "PENSTOCK_", "PREFECT_PROFILE", "PREFECT_HOME")


class PenstockSettings(PrefectBaseSettings):  # type: ignore[misc]  # Prefect is not installed where types are checked
    """Read where Prefect reads its own: environment, `.env`, `prefect.toml`, `pyproject.toml`, profile."""

    model_config = build_settings_config(("integrations", "penstock"))

    store_url: SecretStr | None = Field(
        default=None,
        description="The store's URL; without it `store_block` counts, else PENSTOCK_STORE_URL. Without any of them "
        "Penstock is inactive.",
    )
    store_block: str | None = Field(
        default=None, description="The `PenstockStore` block that holds the store's URL, when `store_url` is not set."
    )
    deployment: str | None = Field(
        default=None,
        description=(
            "The name of this installation in the store; without it PENSTOCK_DEPLOYMENT counts, by default `prefect`. "
            "Each Prefect server needs a name of its own: a second one under the same name is refused."
        ),
    )
    session_ttl_seconds: float | None = Field(
        default=None,
        ge=1,
        le=3600,
        description="How long after its last beat the slots of a vanished process are freed; by default 30 s.",
    )
    enforcement: Enforcement | None = Field(
        default=None,
        description=(
            "`enforce` (the default), `observe`: nothing waits, what would have waited is recorded, or `off`: the "
            "store is not asked at all. Without it PENSTOCK_ENFORCEMENT counts."
        ),
    )
    on_store_error: OnStoreError | None = Field(
        default=None,
        description=(
            "While the store cannot be reached: `wait` (the default, up to `store_retry_seconds`, then fail), `fail` "
            "at once, or `run` without limits, which the run's log says loudly. Without it PENSTOCK_ON_STORE_ERROR "
            "counts."
        ),
    )
    store_retry_seconds: float | None = Field(
        default=None,
        ge=0,
        le=86400,
        description="How long a task or flow waits for a store that is away, with `wait`; by default 600 s.",
    )
    pool_per_op: str | None = Field(
        default=None,
        description=(
            "Patterns (as file names have), comma separated: each task whose `flow name.task name` matches gets a pool "
            "of its own, of one slot unless the store says otherwise. A task outside flows goes by its task name. "
            "Without it PENSTOCK_POOL_PER_OP counts. Only what is under @limited or limit_all asks for slots."
        ),
    )
    hold_while_suspended: str | None = Field(
        default=None,
        description=(
            "Patterns (as file names have), comma separated: a run whose pools all match keeps its slots while it is "
            "suspended, until it is resumed or over; one without pools does where a pattern is `*`. Without it the "
            "slots are free meanwhile."
        ),
    )
    waiting_states: bool = Field(
        default=True,
        description="Whether a task that waits for longer than a second shows the state AwaitingConcurrencySlot.",
    )
    events: bool = Field(
        default=True,
        description="Whether Prefect events tell of slots that are waited for, granted and lost (`penstock.slots.…`).",
    )
    artifacts: bool = Field(
        default=True,
        description="Whether a flow run that waits for longer than 5 s gets an artifact that explains the wait.",
    )

    def holds_while_suspended(self, pools: Iterable[str]) -> bool:
        """Whether a run of these pools keeps its slots: it gives them back as a whole, or not at all."""
        patterns = _listed(self.hold_while_suspended)
        return all(any(fnmatchcase(pool, pattern) for pattern in patterns) for pool in list(pools) or [""])

    @property
    def configured_store_url(self) -> str | None:
        """The store's URL with its password, or None: there is no local file to fall back to inside Prefect.

        The first time it may ask Prefect's API for the block. Raises ConfigError when that is not to be had.
        """
        if self.store_url is not None and self.store_url.get_secret_value():
            return self.store_url.get_secret_value()
        return _url_of_block(self.store_block) if self.store_block else configured_url()

    @property
    def deployment_name(self) -> str:
        """This installation's name in the store."""
        return deployment_name(self.deployment, host=HOST)

    @functools.cached_property
    def figures(self) -> Settings:
        """The engine's settings, with what is set here. Raises ClaimError on what PENSTOCK_… variables cannot say."""
        said = {
            "session_ttl_seconds": self.session_ttl_seconds,
            "enforcement": self.enforcement,
            "on_store_error": self.on_store_error,
            "store_retry_seconds": self.store_retry_seconds,
            "pool_per_op": _listed(self.pool_per_op) or None,
        }
        given = {name: value for name, value in said.items() if value is not None}
        figures = replace(Settings.from_environment(), **given)  # type: ignore[arg-type]
        # A ticket is what a worker waits for: should it die, nobody else waits much longer for it than for a session.
        return replace(figures, ticket_seconds=2 * figures.session_ttl_seconds)


def _listed(patterns: str | None) -> tuple[str, ...]:
    return tuple(filter(None, map(str.strip, (patterns or "").split(","))))


_block_lock = threading.Lock()
# Errors are not kept: a block that is made or mended later counts at the next claim.
_read_block = functools.cache(blocks.store_url)


def _url_of_block(name: str) -> str:
    with _block_lock:  # of many threads one asks
        return _read_block(name)


def settings() -> PenstockSettings:
    """As configured now. Raises pydantic's ValidationError on what cannot be."""
    # To read them takes half a millisecond, and every attempt of every task asks.
    return _settings(tuple(pair for pair in os.environ.items() if pair[0].startswith(_READ_BY)))


@functools.lru_cache(maxsize=8)
def _settings(_environment: tuple[tuple[str, str], ...]) -> PenstockSettings:
    return PenstockSettings()
