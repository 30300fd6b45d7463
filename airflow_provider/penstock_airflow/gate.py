"""The gate before each attempt of a task: the run's lease, then the op's. What is not free soon is awaited deferred."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from penstock.decision import Granted, Refused, Waiting
from penstock.errors import ImpossibleClaim, LeaseLost, StoreUnavailable
from penstock.report import describe
from penstock.rules import Standing, late_pools

from penstock_airflow import claims, compatibility, policy
from penstock_airflow.installation import Installation, engine, installation, patiently
from penstock_airflow.limits import of_run, of_task
from penstock_airflow.trigger import PenstockTrigger

if TYPE_CHECKING:
    from penstock.claim import Claim
    from penstock.decision import Reason
    from penstock.engine import Engine
    from penstock.lease import Lease
    from penstock.request import Request

log = logging.getLogger("penstock.airflow")
_POLL_SECONDS = (0.05, 0.5)
_held: list[tuple[int, Lease]] = []  # of the attempt that runs in this process, with the process's id


def enter(context: Any) -> None:
    """Return with the slots in hand, or raise TaskDeferred.

    Raises ImpossibleClaim, ClaimError, SchemaMismatch, and StoreUnavailable after the store was away for too long.
    """
    ti = context["ti"]
    if compatibility.only_fails(ti):
        return
    compatibility.let_resume(context["task"])
    here = installation()
    _Gate(here, patiently(engine), context).enter()


def leave() -> None:
    """Give back the slots of the attempt that has ended, and this process's session.

    A store that is away does not make the task fail: it is said in the log, and the slots expire.
    """
    if not any(pid == os.getpid() for pid, _ in _held):
        return  # nothing held; or a fork that a user's code made and let return: its parent still holds the slots
    try:
        while _held:
            _held.pop()[1].release()
        engine().close()
    except StoreUnavailable as error:
        log.warning("Penstock: the slots could not be given back, they are freed when they expire: %s", error)


class _Gate:
    def __init__(self, here: Installation, engine: Engine, context: Any) -> None:
        self._here, self._engine, self._context = here, engine, context
        self._facts = claims.facts_of(context)
        deferred_since = compatibility.deferred_since(context["ti"])
        self._waited = deferred_since is not None
        self._since = time.time() if deferred_since is None else deferred_since
        self._deadline = time.monotonic() + here.short_block_seconds

    def enter(self) -> None:
        engine, here = self._engine, self._here
        limits, run_limits = of_task(self._context), of_run(self._context)
        if limits.exempt:
            return
        _, concurrency = patiently(engine.configuration)
        how: dict[str, Any] = {"deployment": here.deployment, "concurrency": concurrency, "globs": here.pools}
        run_claim = claims.run_claim(self._facts, run_limits, run_tag_keys=here.run_tag_keys, **how)
        op_claim = claims.op_claim(self._facts, limits, run_priority=run_limits.priority or 0, **how)
        asked = engine.request(op_claim).claim
        expected = Standing(within=run_claim.within)
        limited = bool(engine.demands(asked, concurrency, expected) or late_pools(asked, concurrency))
        # The run's lease belongs to the run: no process stands behind it, and any task of the run waits with it.
        _, run_lease = self._wait(run_claim, ticket=True, probed=True)
        if run_lease is None:
            self._defer([run_claim, op_claim] if limited else [run_claim])
        run_lease.hand_over(seconds=engine.settings.ticket_seconds)
        # The first claim of a run fixes its own limits on its tasks, whatever the DAG says by now.
        limited = limited or bool(patiently(lambda: engine.demands(asked, concurrency, engine.standing(asked))))
        if not limited:
            self._tell_wait()
            return
        op, lease = self._wait(op_claim)
        if lease is None:
            self._defer([run_claim, replace(op_claim, claim_id=self._hand_over(op))])
        self._hold(lease)
        self._tell_wait()

    def _hold(self, lease: Lease) -> None:
        lease.on_lost.append(_tell_loss)
        _held.append((os.getpid(), lease))
        if not compatibility.after_execution(policy.leave_gate):
            log.warning(
                "Penstock does not know this Airflow's task runner: slots come back only %g s after the task's end; "
                "a newer Penstock may know it",
                self._here.session_ttl_seconds,
            )

    def _wait(self, claim: Claim, **how: bool) -> tuple[Request, Lease | None]:
        """The claim's lease, None when it is still not there after the short block; and the request, to go on with."""
        request = self._engine.request(claim, **how)
        pause, longest = _POLL_SECONDS
        announced = False
        while True:
            try:
                decision = patiently(request.step)
            except LeaseLost as error:  # somebody withdrew the waiter: the task wants its slots all the same
                log.warning("Penstock: claiming again: %s", error)
                request = self._engine.request(replace(claim, claim_id=str(uuid.uuid4())), **how)
                continue
            if isinstance(decision, Granted):
                log.info("Penstock: %s has %s", request.claim.label, _slots(decision.lease))
                return request, decision.lease
            if isinstance(decision, Refused):
                raise ImpossibleClaim(
                    f"{request.claim.label}: {describe(decision.reasons)}. Ask for less, or raise the limit",
                    decision.reasons,
                )
            if not announced:
                announced = True
                self._announce(request, decision)
            left = self._deadline - time.monotonic()
            if left <= 0:
                return request, None
            time.sleep(min(pause, left))
            pause = min(1.5 * pause, longest)

    def _hand_over(self, request: Request) -> str:
        """Leave the op's place in the queue to the trigger. Returns the claim id with which the trigger goes on."""
        hand_over = partial(
            request.hand_over,
            ticket_seconds=self._engine.settings.ticket_seconds,
            eligible_after_seconds=self._here.min_deferral_seconds,
        )
        try:
            return patiently(hand_over)
        except LeaseLost as error:
            log.info("Penstock: the place in the queue is lost, the trigger queues again: %s", error)
            return str(uuid.uuid4())  # an id that has ended is never granted again

    def _tell_wait(self) -> None:
        if self._waited:
            log.info("Penstock: the task waited %.1f s for its slots", max(0.0, time.time() - self._since))

    def _announce(self, request: Request, waiting: Waiting) -> None:
        self._waited = True
        reasons: Sequence[Reason] = patiently(partial(self._engine.reasons, waiting.claim_id))
        log.info("Penstock: %s waits: %s", request.claim.label, describe(reasons))
        self._engine.hook.penstock_waiting(claim=request.claim, waiting=Waiting(waiting.claim_id, tuple(reasons)))

    def _defer(self, wanted: Sequence[Claim]) -> NoReturn:
        """Leave the worker; the trigger waits for the claims in this order and holds them until the task is back."""
        self._engine.close()
        log.info("Penstock: deferring, the worker is free meanwhile")
        raise compatibility.task_deferred(
            trigger=PenstockTrigger.waiting_for(wanted, not_before=time.time() + self._here.min_deferral_seconds),
            method_name=compatibility.RESUME_METHOD,
            kwargs={"since": self._since, **compatibility.interrupted_call(self._context["ti"])},
        )


def _slots(lease: Lease) -> str:
    return ", ".join(f"{held.limit}#{held.slot}" for held in lease.slots) or "nothing to wait for"


def _tell_loss(lease: Lease) -> None:
    log.error(
        "Penstock: %s has lost its slots: the store could not be reached in time, or somebody freed them. "
        "The task goes on, and others may run beside it",
        lease.claim.label,
    )
