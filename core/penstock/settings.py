"""The figures of one installation, with their defaults, and where the store is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

from penstock.errors import ClaimError

Enforcement = Literal["enforce", "observe", "off"]
"""observe: nothing waits, what would have waited is recorded; off: the store is not asked at all."""
OnBlocked = Literal["wait", "skip", "fail"]
"""What a claim does when there is no room."""
OnStoreError = Literal["wait", "fail", "run"]
"""What to do while the store cannot be reached; run: go on without limits, and say so loudly."""


def _number(variable: str, text: str, unit: str, low: float, high: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not low <= number <= high:
        raise ClaimError(f"{variable}={text!r}: {unit} from {low:g} to {high:g} are expected")
    return number


@dataclass(frozen=True, slots=True)
class Settings:
    """Times in seconds. The margin must leave the holder time to stop before the grace is over."""

    session_ttl_seconds: float = 30.0  # else PENSTOCK_SESSION_TTL_SECONDS, see `from_environment`
    poll_min_seconds: float = 0.02
    poll_max_seconds: float = 1.0
    ticket_seconds: float = 300.0
    run_probe_seconds: float = 24 * 3600.0
    sweep_seconds: float = 0.5
    store_retry_seconds: float = 600.0
    upkeep_seconds: float = 300.0
    history_days: float = 30.0  # else PENSTOCK_HISTORY_DAYS
    idle_limit_seconds: float = 3600.0
    enforcement: Enforcement = "enforce"
    on_store_error: OnStoreError = "wait"
    pool_per_op: tuple[
        str, ...
    ] = ()  # patterns (as file names have) of `Claim.step`: those ops get a pool of their own

    @classmethod
    def from_environment(cls) -> Self:
        """The defaults, with what the environment says: `PENSTOCK_SESSION_TTL_SECONDS`, `PENSTOCK_ENFORCEMENT`,
        `PENSTOCK_ON_STORE_ERROR`, `PENSTOCK_POOL_PER_OP` (patterns, comma separated), `PENSTOCK_HISTORY_DAYS`. Raises
        ClaimError otherwise.
        """
        values: dict[str, Any] = {}
        for name, unit, low, high in (
            ("session_ttl_seconds", "seconds", 1, 3600),
            ("history_days", "days", 0.01, 36500),
        ):
            variable = ENVIRONMENT[name]
            if (text := os.environ.get(variable)) is not None:
                values[name] = _number(variable, text, unit, low, high)
        for name, choices in (("enforcement", get_args(Enforcement)), ("on_store_error", get_args(OnStoreError))):
            variable = ENVIRONMENT[name]
            if (choice := os.environ.get(variable)) is not None:
                if choice not in choices:
                    raise ClaimError(f"{variable}={choice!r}: one of {', '.join(choices)} is expected")
                values[name] = choice
        if patterns := os.environ.get(ENVIRONMENT["pool_per_op"]):
            values["pool_per_op"] = tuple(filter(None, (pattern.strip() for pattern in patterns.split(","))))
        return cls(**values)

    @property
    def beat_seconds(self) -> float:
        """How often a session is renewed: three chances before it expires."""
        return self.session_ttl_seconds / 3

    @property
    def margin_seconds(self) -> float:
        """How long before its expiry a lease counts as lost, so that the holder knows before the store re-grants."""
        return min(5.0, self.session_ttl_seconds / 5)


ENVIRONMENT = {
    name: f"PENSTOCK_{name.upper()}"
    for name in ("session_ttl_seconds", "enforcement", "on_store_error", "pool_per_op", "history_days")
}
"""The settings that the environment can say, with their variables; `Settings.from_environment` reads them."""


@dataclass(frozen=True, slots=True)
class StoreTimes:
    """What the store itself waits for, in seconds. `lock_seconds` bounds every wait for a lock.

    A waiter with a process has `acknowledge_least_seconds` and half as long as it has waited to acknowledge its grant,
    `acknowledge_seconds` at most: the longer it waits, the more seldom it looks.
    """

    grace_seconds: float = 3.0
    acknowledge_least_seconds: float = 0.5
    acknowledge_seconds: float = 2.0
    acknowledge_ticket_seconds: float = 60.0
    tombstone_seconds: float = 600.0
    lock_seconds: float = 2.0


def home() -> Path:
    """`$PENSTOCK_HOME`, else `~/.penstock`."""
    return Path(os.environ.get("PENSTOCK_HOME") or Path.home() / ".penstock")


def store_url(given: str | None = None) -> str:
    """The store's URL: the one given, else `PENSTOCK_STORE_URL`, else a SQLite file in `home()`.

    For the command line and plain Python. Inside Airflow and Prefect no URL means inactive: they ask `configured_url`.
    """
    return configured_url(given) or f"sqlite:///{home() / 'penstock.db'}"


def configured_url(given: str | None = None) -> str | None:
    """The URL given or in `PENSTOCK_STORE_URL`, else None."""
    return given or os.environ.get("PENSTOCK_STORE_URL") or None


def deployment(given: str | None = None, *, host: str) -> str:
    """The installation's name: the one given, else `PENSTOCK_DEPLOYMENT`, else the host's name."""
    return given or os.environ.get("PENSTOCK_DEPLOYMENT") or host
