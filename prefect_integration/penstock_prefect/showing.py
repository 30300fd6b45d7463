"""How a run shows its slots: its log, Prefect events, the state of a waiting task, an artifact that explains a wait.

None of it is needed for the limits: what Prefect does not take is said in the log and makes nothing fail.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from penstock.report import describe
from prefect.context import FlowRunContext, TaskRunContext
from prefect.events import emit_event
from prefect.states import AwaitingConcurrencySlot, Running
from prefect.utilities.engine import emit_task_run_state_change_event

from penstock_prefect import asking, telling
from penstock_prefect.settings import settings

if TYPE_CHECKING:
    from penstock.claim import Claim
    from penstock.decision import Reason
    from penstock.lease import Lease

SHOWN_AFTER_SECONDS = (1.0, 5.0, 60.0, 600.0, 3600.0)
"""When a wait is told of, the first time and again. Shorter ones are most of them, and not worth two states."""
EXPLAINED_AFTER_SECONDS = 5.0
MOST_ARTIFACTS = 1000
"""Of so many flow runs this process remembers the artifact; a task worker sees flow runs without end."""
_artifacts: dict[str, UUID] = {}  # by flow run: one for all its waits. Only the explainer's thread touches it


class Shown:
    """One claim on its way, as the run in whose context this is made shows it."""

    def __init__(self, logger: logging.Logger | logging.LoggerAdapter[Any]) -> None:
        task, flow = TaskRunContext.get(), FlowRunContext.get()
        self.waited = False
        self._logger = logger
        self._task_run = task.task_run if task is not None else None
        self._flow_run_id = str(flow.flow_run.id) if flow is not None and flow.flow_run is not None else None
        self._in_run = task is not None or flow is not None
        self._reasons: Sequence[Reason] = ()
        self._awaits = self._explained = self._over = False
        self._lock = threading.Lock()  # an asynchronous wait looks in another thread, and may be cancelled meanwhile

    def waits(self, claim: Claim, reasons: Sequence[Reason], waited_seconds: float) -> None:
        """It waits for these reasons; said anew each time that they are told."""
        with self._lock:
            if self._over:
                return
            self._logger.info("%s", telling.line_of_wait(reasons, waited_seconds, again=self.waited))
            if not self.waited:
                self._emit("waiting", claim, {"reasons": telling.payload(reasons)})
            self.waited, self._reasons = True, reasons
            if self._task_run is not None:
                if settings().waiting_states:
                    self._await(describe(reasons))
            elif waited_seconds >= EXPLAINED_AFTER_SECONDS:
                self._explain(telling.explanation(claim.label, reasons, waited_seconds))

    def granted(self, lease: Lease) -> None:
        """It has its slots, or goes on without any."""
        waited = lease.waited_seconds
        self._end(lease.claim, f"got its slots after {waited:.0f} s.", waited)
        if lease.unlimited:
            self._logger.error("The store is away and on_store_error is `run`: this goes on WITHOUT LIMITS")
            self._emit("unlimited", lease.claim, {})
            return
        if lease.observed:
            self._logger.info(
                "Would have waited for %s: this installation only observes", ", ".join(sorted(lease.observed))
            )
        if lease.slots and (self._in_run or self.waited):
            self._logger.info("%s", telling.line_of_grant(lease, waited if self.waited else None))
            self._emit("granted", lease.claim, {"waited_seconds": round(waited, 3), "slots": _slots(lease)})

    def not_granted(self, claim: Claim, error: BaseException, waited_seconds: float) -> None:
        """It waits no more, and has nothing."""
        self._end(claim, f"waits no more, after {waited_seconds:.0f} s: {type(error).__name__}.", waited_seconds)

    def lost(self, lease: Lease) -> None:
        """Its slots may be somebody else's by now."""
        self._logger.error("The slots are lost, others may get them while this runs on: %r", lease)
        self._emit("lost", lease.claim, {"slots": _slots(lease)})

    def _end(self, claim: Claim, how: str, waited_seconds: float) -> None:
        with self._lock:
            self._over = True
            if self._awaits:
                self._awaits = False
                self._put_state(Running())
            if self._explained:
                self._explain(telling.explanation(claim.label, self._reasons, waited_seconds, ended=how))

    def _await(self, message: str) -> None:
        self._awaits = True
        self._put_state(AwaitingConcurrencySlot(message=message))

    def _put_state(self, state: Any) -> None:
        """As Prefect's task engine does it, which tells the server by events, but for the count of runs and the hooks.

        The server's API would hand a scheduled task run to its task workers; from an event it only takes note.
        """
        run: Any = self._task_run
        before = run.state
        if state.timestamp <= before.timestamp:
            state.timestamp = before.timestamp + timedelta(microseconds=1)
        state.state_details.task_run_id, state.state_details.flow_run_id = run.id, run.flow_run_id
        if before.is_running():
            run.total_run_time += state.timestamp - before.timestamp
        run.state, run.state_id, run.state_type, run.state_name = state, state.id, state.type, state.name
        self._tried(
            partial(emit_task_run_state_change_event, task_run=run, initial_state=before, validated_state=state)
        )

    def _emit(self, what: str, claim: Claim, payload: dict[str, Any]) -> None:
        # Outside of runs nobody would see it, and to tell it Prefect might start a server of its own.
        if not self._in_run or not settings().events:
            return
        resource = {"prefect.resource.id": f"penstock.claim.{claim.claim_id}", "prefect.resource.name": claim.label}
        # Prefect itself adds the flow run and what belongs to it, but no task run outside of flows.
        related = [
            {"prefect.resource.id": f"penstock.pool.{name}", "prefect.resource.role": "pool"} for name in claim.pools
        ]
        if self._task_run is not None:
            run = {"prefect.resource.id": f"prefect.task-run.{self._task_run.id}", "prefect.resource.role": "task-run"}
            related.append(run | {"prefect.resource.name": self._task_run.name})
        payload = {"pools": dict(claim.pools), "tags": dict(claim.tags), "priority": claim.priority, **payload}
        self._tried(
            partial(emit_event, f"penstock.slots.{what}", resource=resource, related=related[:MOST], payload=payload)
        )

    def _explain(self, text: str) -> None:
        """Not in this thread: a grant has to be taken up soon, and the server may be slow."""
        if self._flow_run_id is not None and settings().artifacts:
            self._explained = True
            # The thread knows by this context which server is meant.
            put = partial(copy_context().run, self._tried, partial(_put_artifact, self._flow_run_id, text))
            _explainer(os.getpid()).submit(put)

    def _tried(self, show: Callable[[], object]) -> None:
        try:
            show()
        except Exception as error:  # whatever Prefect raises: nobody's work may fail for being shown
            self._logger.warning("Prefect cannot show what becomes of the slots here: %s", error)


MOST = 50
"""Related resources of one event; a server takes 100, its own among them."""


@functools.cache
def _explainer(_process_id: int) -> ThreadPoolExecutor:
    """That of this process: a fork has none of its parent's threads."""
    return ThreadPoolExecutor(1, thread_name_prefix="penstock-explains")


def _put_artifact(flow_run_id: str, text: str) -> None:
    _artifacts[flow_run_id] = asking.explain(flow_run_id, text, _artifacts.pop(flow_run_id, None))
    while len(_artifacts) > MOST_ARTIFACTS:
        del _artifacts[next(iter(_artifacts))]


def _slots(lease: Lease) -> list[dict[str, Any]]:
    return [{"limit": held.limit, "slot": held.slot, "epoch": held.epoch} for held in lease.slots]
