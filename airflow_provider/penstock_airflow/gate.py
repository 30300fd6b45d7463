"""The gate before each attempt of a task: the run's lease, then the op's. What is not free soon is awaited outside."""

from __future__ import annotations

import contextlib
import logging
import math
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from penstock.errors import ClaimError, ConfigError, LeaseLost, PenstockError, Skipped, StoreUnavailable, WaitTimeout
from penstock.report import describe
from penstock.rules import Standing, late_pools

from penstock_airflow import asking, claims, compatibility, holding, limits, runs, telling
from penstock_airflow.clock import Clock
from penstock_airflow.installation import Installation, engine, installation, patiently
from penstock_airflow.trigger import PenstockTrigger
from penstock_airflow.ways import Way, matches_any, way_of

if TYPE_CHECKING:
    from penstock.claim import Claim
    from penstock.config import Concurrency
    from penstock.decision import Reason
    from penstock.engine import Engine
    from penstock.lease import Lease
    from penstock.request import Request

log = logging.getLogger("penstock.airflow")
TIMEOUT_MARGIN_SECONDS = 300.0
"""So much longer than the wait itself Airflow gives the trigger: for when no triggerer takes it up."""


def enter(context: Any) -> None:
    """Return with the slots in hand, or raise what makes Airflow defer, reschedule or skip the task.

    Raises Blocked, WaitTimeout, ImpossibleClaim, SchemaMismatch, DeploymentConflict, StoreUnavailable after the store
    was away for too long, and what makes Airflow fail it without a retry where something wrong was said of it.
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
    with _faults_are_final():
        said = limits.of_task(context)
        if said.exempt:
            log.info("Penstock: this task is exempt")
            return
        of_run = limits.of_run(context)
    try:
        if (away := compatibility.event_of(ti).get("store_error")) is not None:
            raise StoreUnavailable(away)
        _Gate(here, patiently(engine), context, said, of_run).enter()
    except StoreUnavailable as error:
        if here.on_store_error != "run":
            raise
        _tell_unlimited(context, error)
    except Skipped as error:
        raise compatibility.skipped(f"Penstock: {error}") from error
    finally:
        if not holding.is_anything_held():
            _leave_store(here)


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
    def __init__(
        self, here: Installation, engine: Engine, context: Any, said: limits.Limits, of_run: limits.RunLimits
    ) -> None:
        self._here, self._engine, self._context = here, engine, context
        self._said, self._of_run = said, of_run
        self._interrupted = compatibility.interrupted_call(context["ti"])
        self._clock = Clock(
            since=compatibility.deferred_since(context["ti"]),
            short_block_seconds=here.short_block_seconds,
            timeout_seconds=said.wait_timeout_seconds,
        )

    def enter(self) -> None:
        """See the module's `enter`."""
        if not self._clock.has_waited and not self._interrupted:  # else the log of this attempt says it already
            self._warn_of_tags()
        while True:
            try:
                return self._enter()
            except LeaseLost as error:
                # Somebody withdrew a waiter, or freed the run: the task wants its slots all the same.
                log.warning("Penstock: claiming again: %s", error)

    def _enter(self) -> None:
        """First the run's lease, then the op's: an op that waits for its run holds nothing."""
        engine = self._engine
        _, concurrency = patiently(engine.configuration)
        run_claim, op_claim = self._claims(concurrency)
        asked = engine.request(op_claim).claim
        expected = Standing(within=run_claim.within)
        limited = bool(engine.demands(asked, concurrency, expected) or late_pools(asked, concurrency))
        if self._run_lease(run_claim, [op_claim] if limited else []).unlimited:
            _tell_unlimited(self._context, None)
            return
        if not limited:
            # The first claim of a run fixes its own limits on its tasks, whatever its DAG says by now.
            standing = patiently(partial(engine.standing, asked))
            limited = bool(engine.demands(asked, concurrency, standing))
        if limited:
            lease = self._op_lease(run_claim, op_claim, self._way(asked.pools))
            if lease.unlimited:
                _tell_unlimited(self._context, None)
            else:
                holding.hold(lease)
        if self._clock.has_waited:
            log.info("Penstock: the task waited %.1f s for its slots", self._clock.waited_seconds)

    def _warn_of_tags(self) -> None:
        if ignored := claims.tags_of_dag(self._context["dag"].tags or ())[1]:
            told = "Penstock: no limit sees the DAG's tags %s: a tag key has one value, and theirs is taken"
            log.warning(told, ", ".join(ignored))

    def _claims(self, concurrency: Concurrency) -> tuple[Claim, Claim]:
        """That of the run, and that of the op. Raises what fails the task for good where they cannot be."""
        here = self._here
        how: dict[str, Any] = {"deployment": here.deployment, "concurrency": concurrency, "globs": here.pools}
        with _faults_are_final():
            facts = claims.facts_of(self._context)
            run_claim = claims.run_claim(facts, self._of_run, run_tag_keys=here.run_tag_keys, **how)
            op_claim = claims.op_claim(facts, self._said, run_priority=self._of_run.priority or 0, **how)
        return run_claim, op_claim

    def _run_lease(self, claim: Claim, then: Sequence[Claim]) -> Lease:
        """The run's lease, for which any task of the run waits with the others, or the worker left until it is there.

        `then`: what is wanted after it. It belongs to the run: no process stands behind it, this one lets go of it.
        """
        engine, of_run, way = self._engine, self._of_run, self._way(claim.pools)
        if way == "reschedule":
            claim = replace(claim, roots=())  # one that is held back has no place that outlives this process
        if of_run.on_blocked != "wait" and patiently(partial(engine.store.run_lease, claim.holder or "")) is None:
            runs.end_those_over(engine)  # nobody waits for a run that a user has ended, so nobody else asks after it
        request, lease = self._wait(claim, of_run, way, ticket=True, probed=True)
        if lease is None and (way := self._outside(way)) == "reschedule" and runs.end_those_over(engine):
            request, lease = self._wait(claim, of_run, way, ticket=True, probed=True)
        if lease is None:
            ends = math.inf if of_run.wait_timeout_seconds is None else request.started_at + of_run.wait_timeout_seconds
            self._leave_worker(way, [claim, *then], run_ends=ends)
        lease.hand_over(seconds=engine.settings.ticket_seconds)
        if not request.joined:
            runs.end_those_over(engine, silent_seconds=runs.FORGOTTEN_SECONDS)
        return lease

    def _op_lease(self, run_claim: Claim, claim: Claim, way: Way) -> Lease:
        """The op's lease, or the worker left until it is there."""
        request, lease = self._wait(claim, self._said, way)
        if lease is None:
            way = self._outside(way)
            placed = replace(claim, claim_id=self._leave_place(request, way))
            self._leave_worker(way, [run_claim, placed])
        return lease

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

    def _wait(
        self, claim: Claim, said: limits.Limits | limits.RunLimits, way: Way, **how: bool
    ) -> tuple[Request, Lease | None]:
        """The claim's lease, None when it is still not there after the short block; and the request, to go on with.

        Raises Blocked, Skipped, ImpossibleClaim, WaitTimeout, StoreUnavailable, and LeaseLost when somebody ended it.
        """
        request, clock = self._engine.request(claim, **how), self._clock
        request.started_at = clock.began_at
        request.tell = partial(self._tell, request)
        while True:
            seconds = min(clock.seconds_left_in_worker(way), runs.ASK_SECONDS)
            lease = request.acquire_within(seconds, said.on_blocked, said.wait_timeout_seconds)
            if lease is not None or clock.seconds_left_in_worker(way) <= 0:
                break
            runs.end_those_over(self._engine)  # who waits elsewhere has the triggerer ask, or asks before it leaves
        clock.began_before(request.started_at)
        if lease is not None:
            log.info("Penstock: %s has %s", claim, telling.slots_of(lease))
        elif clock.seconds_left <= 0:
            why = describe(patiently(partial(self._engine.reasons, request.claim_id)))
            raise WaitTimeout(
                f"{claim}: not granted within {self._said.wait_timeout_seconds:g} s ({why}); wait longer, or "
                "raise the limit"
            )
        return request, lease

    def _leave_place(self, request: Request, way: Way) -> str:
        """Leave the op's place in the queue to whoever comes next. Returns the claim id with which that goes on."""
        leave = partial(
            request.hand_over,
            ticket_seconds=self._engine.settings.ticket_seconds,
            eligible_after_seconds=self._here.min_deferral_seconds if way == "defer" else 0.0,
        )
        try:
            return patiently(leave)
        except LeaseLost as error:
            log.info("Penstock: the place in the queue is lost, the task queues again: %s", error)
            return str(uuid.uuid4())  # an id that has ended is never granted again

    def _tell(self, request: Request, reasons: Sequence[Reason]) -> None:
        self._clock.has_waited = True
        for line in telling.lines_of_wait(str(request.claim), reasons, held_back=bool(request.held_back_by)):
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
        left = min(self._clock.seconds_left, run_ends - time.monotonic())
        now = time.time()
        raise compatibility.task_deferred(
            trigger=PenstockTrigger.waiting_for(
                wanted,
                not_before=now + self._here.min_deferral_seconds,
                until=None if left == math.inf else now + left,
                in_queue=matches_any(self._context["task"].queue, self._here.triggerer_queues),
            ),
            method_name=compatibility.RESUME_METHOD,
            kwargs={"since": self._clock.since, **self._interrupted},
            timeout=None if left == math.inf else timedelta(seconds=max(0.0, left) + TIMEOUT_MARGIN_SECONDS),
        )


@contextlib.contextmanager
def _faults_are_final() -> Iterator[None]:
    """What the DAG's author, or whoever started the run, has said wrong is as wrong at the next try: there is none."""
    try:
        yield
    except (ClaimError, ConfigError) as error:
        raise compatibility.failed(f"Penstock: {error}. Correct it, and clear the task: it is not retried") from error


def _give_up(here: Installation, context: Any) -> None:
    """The trigger failed, and the task with it: what stands for this attempt in the store is to end now."""
    facts = claims.facts_of(context)
    try:
        _, concurrency = engine().configuration()
        claim = claims.op_claim(facts, deployment=here.deployment, concurrency=concurrency)
        if engine().end_op(claim, reason="its trigger failed"):
            log.info("Penstock: %s gives up its slots, or its place in the queue", claim)
        engine().close()
    except PenstockError as error:
        log.warning("Penstock: what the task held or waited for is freed when it expires: %s", error)


def _tell_unlimited(context: Any, why: StoreUnavailable | None) -> None:
    """Say loudly that the task runs without limits, and mark it where people look for what became of a run."""
    text = "the store is away and [penstock] on_store_error = run: this task runs WITHOUT LIMITS"
    log.error("Penstock: %s%s", text, f" ({why})" if why is not None else "")
    compatibility.mark(context["ti"], text)
