"""The gate before each attempt of a task: the run's lease, then the op's. What is not free soon is awaited outside."""

from __future__ import annotations

import logging
import math
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from penstock.errors import LeaseLost, PenstockError, Skipped, StoreUnavailable, WaitTimeout
from penstock.report import describe
from penstock.rules import Standing, late_pools

from penstock_airflow import asking, claims, compatibility, limits, policy, runs, telling
from penstock_airflow.installation import Installation, engine, installation, patiently
from penstock_airflow.trigger import HoldingTrigger, PenstockTrigger
from penstock_airflow.ways import Way, is_released, way_of

if TYPE_CHECKING:
    from penstock.claim import Claim
    from penstock.decision import Reason
    from penstock.engine import Engine
    from penstock.lease import Lease
    from penstock.request import Request

log = logging.getLogger("penstock.airflow")
TIMEOUT_MARGIN_SECONDS = 300.0
"""So much longer than the wait itself Airflow gives the trigger: for when no triggerer takes it up."""
_held: list[tuple[int, Lease]] = []  # of the attempt that runs in this process, with the process's id


def enter(context: Any) -> None:
    """Return with the slots in hand, or raise what makes Airflow defer, reschedule or skip the task.

    Raises Blocked, WaitTimeout, ImpossibleClaim, ClaimError, SchemaMismatch, DeploymentConflict, and StoreUnavailable
    after the store was away for too long.
    """
    ti, task, here = context["ti"], context["task"], installation()
    compatibility.let_resume(task)
    if here.enforcement == "off":
        log.info("Penstock: enforcement is off, nothing is limited")
        return
    if compatibility.only_fails(ti):
        _give_up(here, context)
        return
    if here.exempt_setup_teardown and compatibility.is_setup_or_teardown(task):
        log.info("Penstock: setup and teardown tasks are exempt here")
        return
    said = limits.of_task(context)
    if said.exempt:
        log.info("Penstock: this task is exempt")
        return
    try:
        if (away := compatibility.event_of(ti).get("store_error")) is not None:
            raise StoreUnavailable(away)
        _Gate(here, patiently(engine), context, said).enter()
    except StoreUnavailable as error:
        if here.on_store_error != "run":
            raise
        _tell_unlimited(context, error)
    except Skipped as error:
        raise compatibility.skipped(f"Penstock: {error}") from error
    finally:
        if not _held:
            _leave_store(here)


def leave(error: BaseException | None = None) -> None:
    """Give back the slots of the attempt that has ended with this error, and this process's session.

    What an operator holds that defers by itself goes on to its trigger. A store that is away does not make the task
    fail: it is said in the log, and the slots expire.
    """
    if not any(pid == os.getpid() for pid, _ in _held):
        return  # nothing held; or a fork that a user's code made and let return: its parent still holds the slots
    try:
        while _held:
            lease = _held.pop()[1]
            if not compatibility.is_deferral(error) or not _hand_on(lease, error):
                lease.release()
        engine().close()
    except Exception as away:  # whatever comes of the store: the task has done its work, and must not fail for it
        log.warning("Penstock: the slots could not be given back, they are freed when they expire: %s", away)


def _leave_store(here: Installation) -> None:
    """End this process's session: it holds nothing, or leaves the worker."""
    try:
        engine().close()
    except StoreUnavailable as away:
        seconds = here.session_ttl_seconds
        log.info(
            "Penstock: the store could not be told that this process leaves, it notices in %g s: %s", seconds, away
        )


class _Gate:
    def __init__(self, here: Installation, engine: Engine, context: Any, said: limits.Limits) -> None:
        self._here, self._engine, self._context, self._said = here, engine, context, said
        deferred_since = compatibility.deferred_since(context["ti"])
        self._waited = deferred_since is not None
        self._interrupted = compatibility.interrupted_call(context["ti"])
        self._entered = self._began = time.monotonic()
        if deferred_since is not None:
            self._began -= max(0.0, time.time() - deferred_since)
        self._until = self._entered + here.short_block_seconds

    def enter(self) -> None:
        """See the module's `enter`."""
        while True:
            try:
                return self._enter()
            except (
                LeaseLost
            ) as error:  # somebody withdrew a waiter, or freed the run: the task wants its slots all the same
                log.warning("Penstock: claiming again: %s", error)

    def _enter(self) -> None:
        engine, here = self._engine, self._here
        _, concurrency = patiently(engine.configuration)
        facts, of_run = claims.facts_of(self._context), limits.of_run(self._context)
        how: dict[str, Any] = {"deployment": here.deployment, "concurrency": concurrency, "globs": here.pools}
        run_claim = claims.run_claim(facts, of_run, run_tag_keys=here.run_tag_keys, **how)
        op_claim = claims.op_claim(facts, self._said, run_priority=of_run.priority or 0, **how)
        asked = engine.request(op_claim).claim
        expected = Standing(within=run_claim.within)
        limited = bool(engine.demands(asked, concurrency, expected) or late_pools(asked, concurrency))
        way = self._way(run_claim.pools)
        if way == "reschedule":
            run_claim = replace(run_claim, roots=())  # one that is held back has no place that outlives this process
        if of_run.on_blocked != "wait" and patiently(partial(engine.store.run_lease, run_claim.holder or "")) is None:
            runs.end_those_over(engine)  # nobody waits for a run that a user has ended, so nobody else asks after it
        # The run's lease belongs to the run: no process stands behind it, and any task of the run waits with it.
        run, run_lease = self._wait(run_claim, of_run, way, ticket=True, probed=True)
        if run_lease is None and (way := self._outside(way)) == "reschedule" and runs.end_those_over(engine):
            run, run_lease = self._wait(run_claim, of_run, way, ticket=True, probed=True)
        if run_lease is None:
            ends = math.inf if of_run.wait_timeout_seconds is None else run.started_at + of_run.wait_timeout_seconds
            self._leave_worker(way, [run_claim, op_claim] if limited else [run_claim], run_ends=ends)
        run_lease.hand_over(seconds=engine.settings.ticket_seconds)
        if run_lease.unlimited:
            _tell_unlimited(self._context, None)
            return
        if not limited:
            # The first claim of a run fixes its own limits on its tasks, whatever its DAG says by now.
            standing = patiently(partial(engine.standing, asked))
            limited = bool(engine.demands(asked, concurrency, standing))
        if limited:
            way = self._way(asked.pools)
            op, lease = self._wait(op_claim, self._said, way)
            if lease is None:
                way = self._outside(way)
                placed = replace(op_claim, claim_id=self._hand_over(op, way))
                self._leave_worker(way, [run_claim, placed])
            self._hold(lease)
        if self._waited or self._began < self._entered:
            log.info("Penstock: the task waited %.1f s for its slots", time.monotonic() - self._began)

    def _way(self, pools: Mapping[str, int]) -> Way:
        if compatibility.in_one_process():
            return "block"  # there is neither triggerer nor scheduler
        return way_of(pools, otherwise=self._here.waiting, by_pool=self._here.waiting_by_pool)

    def _outside(self, way: Way) -> Way:
        """How to wait outside of the worker, where the way that is wished for is not possible."""
        if way == "defer" and not self._interrupted and asking.triggerer_runs() is False:
            log.warning(
                "Penstock: no triggerer runs, so the task is rescheduled instead of deferred; start `airflow "
                "triggerer`, or set [penstock] waiting = reschedule"
            )
            way = "reschedule"
        if way == "reschedule" and self._interrupted:
            log.info("Penstock: not rescheduled but deferred: Airflow would forget where this operator is to go on")
            way = "defer"
        return way

    def _hold(self, lease: Lease) -> None:
        if lease.unlimited:
            _tell_unlimited(self._context, None)
            return
        lease.on_lost.append(_tell_loss)
        _held.append((os.getpid(), lease))
        if not compatibility.after_execution(policy.leave_gate):
            log.warning(
                "Penstock does not know this Airflow's task runner: slots come back only %g s after the task's end; "
                "a newer Penstock may know it",
                self._here.session_ttl_seconds,
            )

    def _wait(
        self, claim: Claim, said: limits.Limits | limits.RunLimits, way: Way, **how: bool
    ) -> tuple[Request, Lease | None]:
        """The claim's lease, None when it is still not there after the short block; and the request, to go on with.

        Raises Blocked, Skipped, ImpossibleClaim, WaitTimeout, StoreUnavailable, and LeaseLost when somebody ended it.
        """
        request = self._engine.request(claim, **how)
        request.started_at = self._began
        request.tell = partial(self._tell, request)
        left = math.inf if way == "block" else max(0.0, self._until - time.monotonic())
        lease = request.acquire_within(min(left, self._left()), said.on_blocked, said.wait_timeout_seconds)
        self._began = min(self._began, request.started_at)
        if lease is not None:
            log.info("Penstock: %s has %s", claim.label, telling.slots_of(lease))
        elif self._left() <= 0:
            why = describe(patiently(partial(self._engine.reasons, request.claim_id)))
            raise WaitTimeout(
                f"{claim.label}: not granted within {self._said.wait_timeout_seconds:g} s ({why}); wait longer, or "
                "raise the limit"
            )
        return request, lease

    def _left(self) -> float:
        """How long this task may still wait, whatever it waits for."""
        timeout = self._said.wait_timeout_seconds
        return math.inf if timeout is None else max(0.0, self._began + timeout - time.monotonic())

    def _hand_over(self, request: Request, way: Way) -> str:
        """Leave the op's place in the queue to whoever comes next. Returns the claim id with which that goes on."""
        hand_over = partial(
            request.hand_over,
            ticket_seconds=self._engine.settings.ticket_seconds,
            eligible_after_seconds=self._here.min_deferral_seconds if way == "defer" else 0.0,
        )
        try:
            return patiently(hand_over)
        except LeaseLost as error:
            log.info("Penstock: the place in the queue is lost, the task queues again: %s", error)
            return str(uuid.uuid4())  # an id that has ended is never granted again

    def _tell(self, request: Request, reasons: Sequence[Reason]) -> None:
        self._waited = True
        for line in telling.lines_of_wait(request.claim.label, reasons, held_back=bool(request.held_back_by)):
            log.info("Penstock: %s", line)

    def _leave_worker(self, way: Way, wanted: Sequence[Claim], *, run_ends: float = math.inf) -> NoReturn:
        """Leave the worker until the claims are granted, one after the other, or for some time.

        `run_ends` (monotonic): when the run has waited long enough.
        """
        if way == "reschedule":
            seconds = self._here.reschedule_seconds
            log.info("Penstock: rescheduled, the worker is free meanwhile; the next look is in %g s", seconds)
            raise compatibility.rescheduled(seconds)
        log.info("Penstock: deferring, the worker is free meanwhile")
        left = min(self._left(), run_ends - time.monotonic())
        now = time.time()
        raise compatibility.task_deferred(
            trigger=PenstockTrigger.waiting_for(
                wanted,
                not_before=now + self._here.min_deferral_seconds,
                until=None if left == math.inf else now + left,
            ),
            method_name=compatibility.RESUME_METHOD,
            kwargs={"since": now - (time.monotonic() - self._began), **self._interrupted},
            timeout=None if left == math.inf else timedelta(seconds=max(0.0, left) + TIMEOUT_MARGIN_SECONDS),
        )


def _hand_on(lease: Lease, deferral: Any) -> bool:
    """Leave the lease to the trigger for which its operator leaves the worker. False where it is to be given back.

    Raises StoreUnavailable.
    """
    label = lease.claim.label
    if is_released(list(lease.claim.pools), installation().release_while_deferred):
        log.info("Penstock: %s gives its slots back while it is deferred", label)
        return False
    if compatibility.shares_its_stream(deferral.trigger):
        log.warning("Penstock: %s gives its slots back: a trigger that shares a stream cannot keep them", label)
        return False
    try:
        trigger = HoldingTrigger.around(deferral.trigger, replace(lease.claim, claim_id=lease.claim_id))
        lease.hand_over(seconds=engine().settings.ticket_seconds)
    except TypeError as error:
        log.warning(
            "Penstock: %s gives its slots back, its trigger cannot be made again from what it says: %s", label, error
        )
        return False
    except LeaseLost as error:
        log.warning("Penstock: %s", error)
        return True
    deferral.trigger = trigger
    log.info("Penstock: %s keeps its slots while it is deferred", label)
    return True


def _give_up(here: Installation, context: Any) -> None:
    """The trigger failed, and the task with it: what stands for this attempt in the store is to end now."""
    facts = claims.facts_of(context)
    try:
        _, concurrency = engine().configuration()
        claim = claims.op_claim(facts, deployment=here.deployment, concurrency=concurrency)
        if engine().end_op(claim, reason="its trigger failed"):
            log.info("Penstock: %s gives up its slots, or its place in the queue", claim.label)
        engine().close()
    except PenstockError as error:
        log.warning("Penstock: what the task held or waited for is freed when it expires: %s", error)


def _tell_unlimited(context: Any, why: StoreUnavailable | None) -> None:
    """Say loudly that the task runs without limits, and mark it where people look for what became of a run."""
    text = "the store is away and [penstock] on_store_error = run: this task runs WITHOUT LIMITS"
    log.error("Penstock: %s%s", text, f" ({why})" if why is not None else "")
    compatibility.mark(context["ti"], text)


def _tell_loss(lease: Lease) -> None:
    log.error(
        "Penstock: %s has lost its slots: the store could not be reached in time, or somebody freed them. "
        "The task goes on, and others may run beside it",
        lease.claim.label,
    )
