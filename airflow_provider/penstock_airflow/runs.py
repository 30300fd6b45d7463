"""The end of a DAG run: told by the callbacks that the policy composes, and behind them asked for by the triggerer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from penstock.hooks import installed_plugins
from penstock.hookspecs import hookimpl
from penstock.store.contract import ClaimRow

from penstock_airflow import asking, claims, compatibility, installation

if TYPE_CHECKING:
    from penstock.engine import Engine

log = logging.getLogger("penstock.airflow")
PATIENCE_SECONDS = 20.0  # the dag-processor kills the whole parse of a file after 50 s
ASK_SECONDS = 30.0
"""How long a run is left alone after it was granted, and after each question about it. Most runs end by their callbacks
before; the first question that a triggerer's child asks has its parent load the whole API server, which takes seconds
in which no trigger of that triggerer goes on.
"""


def end(context: Any) -> None:
    """Free the run's lease. Raises StoreUnavailable when the store stays away; Airflow writes that into its log."""
    run_id = claims.run_id(context["dag"].dag_id, context["run_id"])

    def end_run() -> bool:
        engine = installation.engine()
        engine.configuration()  # the first question makes sure of the store
        return engine.end_run(run_id)

    if installation.patiently(end_run, patience_seconds=PATIENCE_SECONDS):
        log.info("Penstock: the run slot of %s is free", run_id)


def watch() -> None:
    """Have this triggerer asked whether runs that hold a lease are alive, while somebody waits.

    Airflow calls no callback when a user marks or deletes a run. Task processes are not asked: their line to Airflow
    may be lent to a subprocess, and a question from another thread would garble it.
    """
    if not installed_plugins().has_plugin(__name__) and not compatibility.in_one_process():
        installed_plugins().register(_Probe(), __name__)


def end_those_over(engine: Engine) -> int:
    """Ask about the runs that hold a lease, from a task that waits for one and is about to leave; how many are over.

    For an installation whose triggerer has nothing to do, or that has none. Only the main thread may ask.
    """

    def is_alive(row: ClaimRow) -> bool | None:
        since = (row.granted_at or row.enqueued_at) / 1_000_000
        return _asked(row, asking.run_is_alive_here) if time.time() - since > ASK_SECONDS else None

    return engine.janitor.probe(is_alive)


def _asked(row: ClaimRow, ask: Callable[[str, str], bool]) -> bool | None:
    """What Airflow says of a run. None for what is not this installation's, or cannot be told now."""
    run = row.claim
    if (run.host, run.deployment) != (claims.HOST, installation.installation().deployment) or run.run_id is None:
        return None
    dag_id, _, dag_run_id = run.run_id.partition("/")
    try:
        return ask(dag_id, dag_run_id)
    except Exception as error:  # whatever Airflow raises: a question without an answer frees nothing
        log.warning("Penstock: Airflow does not say whether %s is over: %s", run.run_id, error)
        return None


class _Probe:
    def __init__(self) -> None:
        self._ask_at: dict[str, float] = {}  # by run, monotonic

    @hookimpl
    def penstock_holder_alive(self, claim: ClaimRow) -> bool | None:
        """None for what is not this installation's, cannot be told now, or was asked about a moment ago."""
        due = self._is_due(claim.claim.claim_id, since=(claim.granted_at or claim.enqueued_at) / 1_000_000)
        return _asked(claim, asking.run_is_alive) if due else None

    def _is_due(self, claim_id: str, *, since: float) -> bool:
        """Whether to ask now about a run that has stood in the store `since` (seconds since 1970)."""
        now = time.monotonic()
        due = self._ask_at.setdefault(claim_id, now + max(0.0, since + ASK_SECONDS - time.time()))
        if now < due:
            return False
        self._ask_at[claim_id] = now + ASK_SECONDS
        for gone in [other for other, at in self._ask_at.items() if at < now - 2 * ASK_SECONDS]:
            del self._ask_at[gone]  # no longer in the store, or it would have been asked about
        return True
