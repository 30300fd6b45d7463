"""The end of a DAG run: told by the callbacks that the policy composes, and behind them asked for by the triggerer."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from penstock.errors import StoreUnavailable
from penstock.hooks import installed_plugins
from penstock.hookspecs import hookimpl
from penstock.store.contract import ClaimRow

from penstock_airflow import asking, claims, compatibility, installation

if TYPE_CHECKING:
    from penstock.engine import Engine

log = logging.getLogger("penstock.airflow")
PATIENCE_SECONDS = 20.0
"""So long the callbacks of one file wait for a store that is away, all together: the dag-processor ends the whole parse
of a file after 50 s, with the users' callbacks that come after ours.
"""
ONE_FILE_SECONDS = 60.0
"""What a process does within these is taken for the callbacks of one file."""
ASK_SECONDS = 30.0
"""How long a run is left alone after it was granted, and after each question about it. Most runs end by their callbacks
before; the first question that a triggerer's child asks has its parent load the whole API server, which takes seconds
in which no trigger of that triggerer goes on.
"""
FORGOTTEN_SECONDS = 300.0
"""After so long without a word from a run the first task of another asks about it, though nobody waits: its callbacks
may have found the store away. Otherwise its slots would be free only a day later, for all hosts.
"""


def end(context: Any) -> None:
    """Free the run's lease, unless the run was cleared meanwhile and has begun again.

    Raises StoreUnavailable when the store stays away; Airflow writes that into its log.
    """
    run_id = claims.run_id(context["dag"].dag_id, context["run_id"])
    ended_at = getattr(context.get("dag_run"), "end_date", None)  # Airflow may know of no task that could tell it

    def end_run() -> bool:
        engine = installation.engine()
        engine.configuration()  # the first question makes sure of the store
        return engine.end_run(run_id, ended_seconds_ago=ended_at and time.time() - ended_at.timestamp())

    if _patience.spent_on(end_run):
        log.info("Penstock: the run slot of %s is free", run_id)


class _Patience:
    """What the callbacks of one file have left for a store that is away."""

    def __init__(self) -> None:
        self._began_at = -math.inf  # monotonic
        self._is_over = False

    def spent_on(self, call: Callable[[], bool]) -> bool:
        """The call's result. Raises StoreUnavailable when patience is over, at once where it was so before."""
        now = time.monotonic()
        if now - self._began_at > ONE_FILE_SECONDS:
            self._began_at, self._is_over = now, False
        if self._is_over:  # to find it away once more takes time, too
            raise StoreUnavailable("the store did not answer a moment ago; the slot comes back when Airflow is asked")
        try:
            return installation.patiently(call, patience_seconds=max(0.0, self._began_at + PATIENCE_SECONDS - now))
        except StoreUnavailable:
            self._is_over = True
            raise


_patience = _Patience()


def watch() -> None:
    """Have this triggerer asked whether runs that hold a lease are alive, while somebody waits.

    Airflow calls no callback when a user marks or deletes a run. Task processes are not asked: their line to Airflow
    may be lent to a subprocess, and a question from another thread would garble it.
    """
    if not installed_plugins().has_plugin(__name__) and not compatibility.in_one_process():
        installed_plugins().register(_Probe(), __name__)


def end_those_over(engine: Engine, *, silent_seconds: float | None = None) -> int:
    """Ask about the runs that hold a lease and were silent for so long (`ASK_SECONDS`); how many of them are over.

    From a task that waits for one, or is about to leave: for an installation whose triggerer has nothing to do, or that
    has none. From the first task of each run: for those whose end the store has never heard of. Only the main thread
    may ask. A run that one of its own tasks, or somebody's question, has shown alive a moment ago is left alone: many
    tasks may wait.
    """
    silent_seconds = ASK_SECONDS if silent_seconds is None else silent_seconds

    def is_alive(row: ClaimRow) -> bool | None:
        shown_at = (row.expires_at or 0) / 1_000_000 - engine.settings.run_probe_seconds
        return _asked(row, asking.run_is_alive_here) if time.time() - shown_at > silent_seconds else None

    try:
        return engine.janitor.probe(is_alive)
    except StoreUnavailable as error:  # no reason for a task to fail: it asks for others' sake, or will ask again
        log.warning("Penstock: runs that may be over could not be looked for: %s", error)
        return 0


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
