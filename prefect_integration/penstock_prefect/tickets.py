"""The tickets by which a worker waits for runs: in the store alone, so that any worker goes on with them."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from penstock.errors import StoreUnavailable
from penstock.report import describe
from penstock.store.contract import ClaimState

if TYPE_CHECKING:
    from penstock.claim import Claim
    from penstock.engine import Engine
    from penstock.lease import Lease
    from penstock.request import Request
    from penstock.store.contract import RunLease

OLDER_HOLDS = "an attempt of this run before this one still holds its slots"


@dataclass(frozen=True)
class Place:
    """A ticket in the queue, with what waits for its lease. `began_at` (monotonic): in another worker perhaps."""

    request: Request
    lease: asyncio.Future[Lease]

    @property
    def began_at(self) -> float:
        """See the class."""
        return self.request.started_at


def queue(engine: Engine, claim: Claim, *, probed: bool) -> Place:
    """Wait for the lease, on the running event loop. `probed`: the API is asked whether its run still lives."""
    request = engine.request(claim, ticket=True, probed=probed)
    return Place(request, asyncio.ensure_future(_granted(engine, request)))


async def _granted(engine: Engine, request: Request) -> Lease:
    while await _waits_for_older(engine, request.claim):
        await asyncio.sleep(engine.settings.poll_max_seconds)
    while (lease := await request.acquire_ticket_async(math.inf)) is None:
        pass
    return lease


async def blocked_by_older(engine: Engine, claim: Claim) -> bool:
    """As `older_attempt_holds`, for a claim that is not to wait. Raises StoreUnavailable unless it is to run then."""
    try:
        return await engine.off_loop(partial(older_attempt_holds, engine, claim))
    except StoreUnavailable:
        if engine.settings.on_store_error == "run":
            return False
        raise


async def _waits_for_older(engine: Engine, claim: Claim) -> bool:
    try:
        return await engine.off_loop(partial(older_attempt_holds, engine, claim))
    except StoreUnavailable:
        if engine.settings.on_store_error == "fail":
            raise
        return engine.settings.on_store_error == "wait"


def let_go(engine: Engine, place: Place) -> None:
    """Leave the ticket in the store as it is, waiting or granted, and answer for it no more."""
    waiting = place.lease
    if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
        waiting.result().hand_over(seconds=engine.settings.ticket_seconds)
    waiting.cancel()


def why(engine: Engine, claim: Claim) -> str:
    """What the run waits for, in words."""
    try:
        if older_attempt_holds(engine, claim):
            return OLDER_HOLDS
        run = engine.store.run_lease(claim.holder or "")
        return describe(engine.reasons(run.claim_id)) if run is not None else ""
    except StoreUnavailable as error:
        return str(error)


def older_attempt_holds(engine: Engine, claim: Claim) -> bool:
    """Whether the lease that this attempt would join is that of one before, which may still be at work: nobody has told
    of its end, and its process has been heard of.

    Prefect counts only attempts that have begun: one that crashed while it was prepared goes by the same number as the
    next. That one is in the hands of a process; what is granted to this attempt is a ticket still.
    """
    run = engine.store.run_lease(claim.holder or "")
    return run is not None and run.state is ClaimState.HELD and (run.attempt < claim.attempt or _is_in_hand(run))


def is_being_begun(engine: Engine, claim: Claim) -> bool:
    """Whether a process of this very attempt lives that a worker started before: it holds the run's lease and has not
    begun yet, for then this would be the next attempt.
    """
    try:
        run = engine.store.run_lease(claim.holder or "")
    except StoreUnavailable:
        return False  # the claim waits for the store, and then finds out
    return run is not None and run.state is ClaimState.HELD and run.attempt == claim.attempt and _is_in_hand(run)


def is_kept(engine: Engine, claim: Claim) -> bool:
    """Whether the lease that the run had when it was suspended has been kept for this attempt."""
    try:
        run = engine.store.run_lease(claim.holder or "")
    except StoreUnavailable:
        return False  # the claim waits for the store, and then finds out
    return run is not None and run.state is ClaimState.HELD and not _is_in_hand(run)


def end(engine: Engine, claim: Claim) -> None:
    """End what stands in the store for this attempt of a run, and not for one before."""
    run = engine.store.run_lease(claim.holder or "")
    if run is not None and run.attempt == claim.attempt and not (run.state is ClaimState.HELD and _is_in_hand(run)):
        engine.store.end(run.claim_id, reason="the run is over")


def _is_in_hand(run: RunLease) -> bool:
    return run.expires_at is None
