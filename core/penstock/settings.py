"""The figures of one installation, with their defaults, and where the store is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from penstock.errors import ClaimError


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

    @classmethod
    def from_environment(cls) -> Self:
        """The defaults, with `PENSTOCK_SESSION_TTL_SECONDS` where it is set. Raises ClaimError when that is no time."""
        if (text := os.environ.get("PENSTOCK_SESSION_TTL_SECONDS")) is None:
            return cls()
        try:
            seconds = float(text)
        except ValueError:
            seconds = 0.0
        if not 1 <= seconds <= 3600:
            raise ClaimError(f"PENSTOCK_SESSION_TTL_SECONDS={text!r}: seconds from 1 to 3600 are expected")
        return cls(session_ttl_seconds=seconds)

    @property
    def beat_seconds(self) -> float:
        """How often a session is renewed: three chances before it expires."""
        return self.session_ttl_seconds / 3

    @property
    def margin_seconds(self) -> float:
        """How long before its expiry a lease counts as lost, so that the holder knows before the store re-grants."""
        return min(5.0, self.session_ttl_seconds / 5)


@dataclass(frozen=True, slots=True)
class StoreTimes:
    """What the store itself waits for, in seconds. `lock_seconds` bounds every wait for a lock."""

    grace_seconds: float = 3.0
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
