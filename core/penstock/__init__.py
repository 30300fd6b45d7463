"""Penstock: shared concurrency limits for Airflow, Prefect and plain processes. The store loads at `connect`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.claim import Claim
from penstock.decision import Granted, Reason, Refused, Waiting
from penstock.errors import (
    Blocked,
    ClaimError,
    ConfigChanged,
    ConfigError,
    ImpossibleClaim,
    LeaseLost,
    PenstockError,
    PluginError,
    SchemaMismatch,
    Skipped,
    StoreUnavailable,
    WaitTimeout,
)

if TYPE_CHECKING:
    from penstock.engine import Engine
    from penstock.settings import Settings

__version__ = "0.1.0"


def connect(
    url: str | None = None, *, host: str = "process", deployment: str | None = None, settings: Settings | None = None
) -> Engine:
    """An engine on the store at `url`, else at `PENSTOCK_STORE_URL`, else on a SQLite file under `PENSTOCK_HOME`.

    Raises StoreUnavailable, or SchemaMismatch when the store wants `penstock db upgrade`. SQLite files are created and
    upgraded here.
    """
    from penstock.connection import connect as connect_engine  # noqa: PLC0415  # SQLAlchemy and pydantic load here

    return connect_engine(url, host=host, deployment=deployment, settings=settings)


__all__ = [
    "Blocked",
    "Claim",
    "ClaimError",
    "ConfigChanged",
    "ConfigError",
    "Granted",
    "ImpossibleClaim",
    "LeaseLost",
    "PenstockError",
    "PluginError",
    "Reason",
    "Refused",
    "SchemaMismatch",
    "Skipped",
    "StoreUnavailable",
    "WaitTimeout",
    "Waiting",
    "__version__",
    "connect",
]
