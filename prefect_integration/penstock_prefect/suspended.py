"""A run that is suspended: what it holds stays in the store for whoever resumes it, where it is to keep that."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from penstock.errors import LeaseLost, StoreUnavailable

from penstock_prefect import tickets
from penstock_prefect.settings import settings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from penstock.engine import Engine
    from penstock.lease import Lease

log = logging.getLogger("penstock.prefect")
RESUMING = "Resuming"
"""The name of the Scheduled state of a run that was suspended, until a worker takes it."""


def is_suspended(state: Any) -> bool:
    """Whether the run is paused without a process that waits."""
    return state is not None and bool(state.is_paused() and state.state_details.pause_reschedule)


def is_resuming(flow_run: Any) -> bool:
    """Whether it was suspended, and has not gone on yet."""
    return bool(flow_run.empirical_policy.resuming)


def keep(engine: Engine, lease: Lease | None, pools: Iterable[str]) -> bool:
    """Leave the run's lease in the store, where the API is asked about the run; False where it is to be given back.

    Not while others hold it beside this process: the last of them leaves it.
    """
    if lease is None or lease.unlimited or not settings().holds_while_suspended(pools):
        return False
    try:
        kept = tickets.have_api_asked(engine, lease, stay=False)
    except LeaseLost:
        return False
    except StoreUnavailable as error:
        log.error("Penstock: the run's slots could not be kept while it is suspended: %s", error)
        return False
    if kept:
        log.info("Penstock: %s keeps its slots while it is suspended", lease.claim)
    return kept
