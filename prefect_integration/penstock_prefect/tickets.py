"""The tickets by which a worker waits for runs: in the store alone, so that any worker goes on with them."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from penstock.errors import StoreUnavailable
from penstock.report import describe
from penstock.store.contract import ClaimState, Owner, Result

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


def have_api_asked(engine: Engine, lease: Lease, *, stay: bool) -> bool:
    """Keep a run's lease for as long as the API says that the run is not over, until a process joins it: then it lives
    as long as the process. With `stay` this process goes on as one that has it, else it is left in the store.

    False where others have it by now. Raises StoreUnavailable, and LeaseLost where it cannot be left: also while others
    hold it beside this process.
    """
    session_id = lease.session_id
    if session_id is not None and not stay:
        _touch(engine, lease, Owner(session_id))  # what the API is asked about already is nobody's to hand over
        lease.hand_over(seconds=engine.settings.ticket_seconds)
    owner = Owner(session_id if stay else None, probe_seconds=engine.settings.run_probe_seconds)
    return _touch(engine, lease, owner) is Result.HELD


def _touch(engine: Engine, lease: Lease, owner: Owner) -> Result:
    return engine.store.touch(lease.claim_id, (), version=0, owner=owner).result


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
    if run is None or run.state is not ClaimState.HELD:
        return False
    return run.attempt < claim.attempt or _is_in_hand(engine, claim, run)


def is_being_begun(engine: Engine, claim: Claim) -> bool:
    """Whether a process of this very attempt lives that a worker started before: it holds the run's lease and has not
    begun yet, for then this would be the next attempt.
    """
    try:
        run = engine.store.run_lease(claim.holder or "")
        if run is None or run.state is not ClaimState.HELD or run.attempt != claim.attempt:
            return False
        return _is_in_hand(engine, claim, run)
    except StoreUnavailable:
        return False  # the claim waits for the store, and then finds out


def is_kept(engine: Engine, claim: Claim) -> bool:
    """Whether the lease that the run had when it was suspended has been kept for this attempt."""
    try:
        run = engine.store.run_lease(claim.holder or "")
        return run is not None and run.state is ClaimState.HELD and not _is_in_hand(engine, claim, run)
    except StoreUnavailable:
        return False  # the claim waits for the store, and then finds out


def end(engine: Engine, claim: Claim) -> None:
    """End what stands in the store for this attempt of a run, and not for one before."""
    run = engine.store.run_lease(claim.holder or "")
    if run is None or run.attempt != claim.attempt:
        return
    if run.state is not ClaimState.HELD or not _is_in_hand(engine, claim, run):
        engine.store.end(run.claim_id, reason="the run is over")


def _is_in_hand(engine: Engine, claim: Claim, run: RunLease) -> bool:
    """Whether a process holds it: the run's, or the worker that has started that and keeps it until it has joined."""
    if run.expires_at is None:
        return True
    if any(row.session_ids for row in engine.store.probed() if row.claim.claim_id == run.claim_id):
        return True
    now = engine.store.run_lease(claim.holder or "")  # its process may have joined in between
    return now is not None and now.expires_at is None
