"""The end of a run whose own process could not tell of it, where somebody is there to call Prefect's state hooks."""

from __future__ import annotations

import logging
import os
from typing import Any

from penstock_prefect import asking, installation
from penstock_prefect.adoption import FLOW_RUN

log = logging.getLogger("penstock.prefect")


def free_slots(flow: Any, flow_run: Any, state: Any) -> None:
    """Free what a run holds that crashed or was cancelled. Raises StoreUnavailable, which Prefect writes into its log.

    `serve()` calls it when the run's process is gone. In that process it does nothing: work may go on there still. Nor
    where it comes late: the next attempt keeps what it holds.
    """
    if os.environ.get(FLOW_RUN) == str(flow_run.id) or (engine := installation.engine()) is None:
        return
    engine.configuration()  # the first question makes sure of the store
    lease = engine.store.run_lease(engine.run_claim(str(flow_run.id)).holder or "")
    if lease is None or lease.attempt > asking.attempt_of(flow_run):
        return
    if engine.store.end(lease.claim_id, reason="the run is over", expires_at=lease.expires_at):
        log.info("Penstock: run %s of %s is %s, its slots are free", flow_run.name, flow.name, state.name)
