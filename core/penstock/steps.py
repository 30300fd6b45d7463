"""A claim under way, step by step: to ask, to speak up again, to leave. Nothing here waits."""

from __future__ import annotations

import logging
import math
import time
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

from penstock.claim import ClaimKind, run_pool_claim
from penstock.decision import Granted, Refused, Waiting
from penstock.errors import Blocked, ImpossibleClaim, LeaseLost, StoreUnavailable
from penstock.lease import Lease
from penstock.report import describe, impossible_reasons
from penstock.rules import Standing, late_pools
from penstock.store.contract import Mode, Outcome, Owner, Result
from penstock.text import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from penstock.claim import Claim
    from penstock.config import Concurrency
    from penstock.decision import Decision, Reason
    from penstock.engine import Engine
    from penstock.rules import Demand

log = logging.getLogger("penstock.waiting")
ANNOUNCE_SECONDS = 0.5
RUN_LOOK_SECONDS = 5.0
"""How often a run that is held back is looked for in the store; many may be held back."""
HELD_BACK_SECONDS = 300.0
"""So long a run is held back at most: those have no rank, and others might come first again and again."""


class Steps:
    """One claim of this process on its way: the steps of a `penstock.request.Request`.

    `claim_id` names it in the store once it waits there. `queued`: it does; `elsewhere`: it does not, since another
    process has the same claim. `started_at` (monotonic) is when its wait began, in another process perhaps. `tell`, if
    set, is called with the reasons when a wait is to be told of, instead of a line in the log: each time that one of
    `tell_after_seconds` has passed since `started_at`; `announced`: that has been done once. `joined`: what it has was
    there before.
    """

    def __init__(
        self, engine: Engine, claim: Claim, *, ticket: bool, probed: bool, eligible_after_seconds: float
    ) -> None:
        self.claim, self.claim_id, self.ticket = claim, claim.claim_id, ticket
        self.queued = self.elsewhere = False
        self.held_back_by: tuple[str, ...] = ()
        self._run_looked_for_at = -math.inf
        self.started_at = self.asked_at = time.monotonic()
        self.tell: Callable[[Sequence[Reason]], None] | None = None
        self.tell_after_seconds: Sequence[float] = (ANNOUNCE_SECONDS,)
        self.announced = self.joined = False
        self._engine, self._probed = engine, probed
        self._eligible_after_seconds = eligible_after_seconds
        self._mode = Mode.WAIT
        self._stood = False
        self._run_pools: dict[str, Steps] = {}
        self._run_waits_as: str | None = None
        self._began_with: str | None = None
        self._lease: Lease | None = None

    @property
    def places(self) -> list[str]:
        """The claims that stand in the queue for it: its own, or first its run's, or those of its run's late pools."""
        if self.queued:
            return [self.claim_id]
        if self._run_waits_as is not None:
            return [self._run_waits_as]
        return [late.claim_id for late in self._run_pools.values() if late.queued]

    # -- one step ----------------------------------------------------------------------------------------------------

    def step(self) -> Decision:
        """Ask, or speak up again, once; never blocks longer than the store's own bound on locks."""
        return self._step(Mode.WAIT)

    def try_step(self, *, skip: bool = False) -> Granted | Refused:
        """Ask now or not at all; nothing is left behind when there is no room, but that a run remembers a `skip`."""
        decision = self._step(Mode.SKIP if skip else Mode.TRY)
        if isinstance(decision, Waiting):  # its run waits, or the same holder has it elsewhere: no room for this one
            reasons = tuple(reason for claim_id in self.places for reason in self._engine.reasons(claim_id))
            return self._engine.refused(self.claim, reasons, "skipped" if skip else "blocked")
        return decision

    def _step(self, mode: Mode) -> Decision:
        engine = self._engine
        if engine.settings.enforcement == "off":
            return Granted(engine.without_limits(self.claim))
        if engine.settings.enforcement == "observe":
            mode = Mode.OBSERVE
        self._mode = mode
        with engine.leases.alone_for(self.claim):
            try:
                return self._ask(mode)
            except StoreUnavailable:
                raise  # it waits on, for all that is known
            except Exception:
                self.leave_queue()
                raise

    def _ask(self, mode: Mode) -> Decision:
        engine = self._engine
        if (mine := engine.leases.join(self.claim)) is not None:
            engine.leases.forget(self.claim_id, self)
            self.claim_id, self._lease = mine.claim_id, mine
            return Granted(mine)
        while True:
            version, concurrency = engine.configuration()
            standing = engine.standing(self.claim, again=self._stood)
            self._stood = True
            self._run_waits_as = standing.run_claim_id if standing.run_waits else None
            if standing.run_skipped:
                return self._skipped_before()
            if late := late_pools(self.claim, concurrency, standing):
                if self._run_waits(late, standing, mode):
                    return Waiting(self.claim_id)
                standing = engine.standing(self.claim, again=True)
            if standing.run_waits or self._held_back(concurrency, mode):
                return Waiting(self.claim_id)
            demands = engine.demands(self.claim, concurrency, standing)
            owner = self._owner()
            if not self.queued:
                self.claim_id = self.claim.claim_id
            engine.leases.requested(self.claim_id, self)
            self.asked_at = time.monotonic()
            if not self.queued:
                if any(demand.impossible for demand in demands) and mode is not Mode.OBSERVE:
                    engine.leases.forget(self.claim_id, self)
                    return engine.refused(self.claim, impossible_reasons(demands), "impossible")
                if mode is not Mode.WAIT:
                    engine.janitor.sweep_first()
                outcome = engine.store.acquire(
                    self.claim,
                    demands,
                    version=version,
                    owner=owner,
                    mode=mode,
                    eligible_after_seconds=self._eligible_after_seconds,
                )
            else:
                outcome = engine.store.touch(self.claim_id, demands, version=version, owner=owner)
            if (decision := self._decide(self._unless_lost(outcome, owner), owner, demands)) is not None:
                return decision

    def _run_waits(self, late: Mapping[str, int], standing: Standing, mode: Mode) -> bool:
        """Have the run take pools of run granularity first, before the op takes anything; True while it waits for one.

        Raises Blocked instead of waiting inside of what holds slots: that could wait for itself.
        """
        if standing.run_claim_id is None or standing.run_waits:
            return standing.run_waits
        for name, slots in sorted(late.items()):
            if name not in self._run_pools:
                claim = run_pool_claim(self.claim, standing.run_claim_id, name, slots)
                self._run_pools[name] = Steps(
                    self._engine, claim, ticket=self.ticket, probed=False, eligible_after_seconds=0.0
                )
            request = self._run_pools[name]
            decision = request.step() if mode is Mode.WAIT and not standing.nested else request.try_step()
            if isinstance(decision, Waiting):
                return True
            if isinstance(decision, Refused):
                raise (ImpossibleClaim if decision.impossible else Blocked)(
                    f"{self.claim}: its run cannot have pool {name!r} now: {describe(decision.reasons)}. Declare "
                    "the pool on the run, which then takes it before it starts",
                    decision.reasons,
                )
        return False

    def _held_back(self, concurrency: Concurrency, mode: Mode) -> bool:
        """Whether the run is not to begin yet; it then does not stand in the queue for a run's slots either."""
        held_back_by: tuple[str, ...] = ()
        waited = time.monotonic() - self.started_at
        if self.claim.kind is ClaimKind.RUN and not self.queued and mode is Mode.WAIT and waited < HELD_BACK_SECONDS:
            held_back_by = self._engine.root_pools_full(self.claim, concurrency)
        if held_back_by and time.monotonic() >= self._run_looked_for_at + RUN_LOOK_SECONDS:
            if self._engine.store.run_lease(self.claim.holder or "") is not None:  # another of its tasks was let in
                held_back_by = ()
            else:
                self._run_looked_for_at = time.monotonic()
        self.held_back_by = held_back_by
        return bool(held_back_by)

    def _owner(self) -> Owner:
        settings = self._engine.settings
        return Owner(
            session_id=None if self.ticket else self._engine.session_id(),
            ticket_seconds=settings.ticket_seconds,
            probe_seconds=settings.run_probe_seconds if self._probed else None,
        )

    def _unless_lost(self, outcome: Outcome, owner: Owner) -> Outcome:
        """The outcome; a grant to a session that could not be trusted any more when the answer came is none."""
        session_id = None if self._probed else owner.session_id
        if outcome.result is not Result.HELD or session_id is None or self._engine.trusted(session_id):
            return outcome
        return replace(outcome, result=Result.SESSION_LOST)

    def _decide(self, outcome: Outcome, owner: Owner, demands: Sequence[Demand]) -> Decision | None:
        """The decision, or None to look again."""
        engine = self._engine
        if outcome.claim_id != self.claim_id:
            engine.leases.forget(self.claim_id, self)
            self.claim_id = outcome.claim_id
            engine.leases.requested(self.claim_id, self)
        self.elsewhere, self.joined = outcome.result is Result.BUSY, outcome.joined
        self._began_before(outcome)
        match outcome.result:
            case Result.HELD:
                return self._granted(outcome, owner)
            case Result.WAITING:
                self.queued = True
                return Waiting(self.claim_id)
            case Result.BUSY:
                engine.leases.forget(self.claim_id, self)
                return Waiting(self.claim_id)
            case Result.NO_ROOM:
                engine.leases.forget(self.claim_id, self)
                reasons = engine.store_reasons(demands)
                return engine.refused(self.claim, reasons, "skipped" if self._mode is Mode.SKIP else "blocked")
            case Result.SKIPPED:
                engine.leases.forget(self.claim_id, self)
                return self._skipped_before()
            case Result.STALE:
                engine.configuration(fresh=True)
            case Result.SESSION_LOST | Result.EXPIRED as result:
                if result is Result.SESSION_LOST and owner.session_id is not None:
                    engine.session_is_gone(owner.session_id)
                engine.leases.forget(self.claim_id, self)
                # What it had ended with a session; an id that has ended is never granted again.
                self.claim, self.queued = replace(self.claim, claim_id=str(uuid.uuid4())), False
            case Result.ENDED:
                engine.leases.forget(self.claim_id, self)
                if not self.queued and self.claim_id != self.claim.claim_id:
                    return None  # another's, which this one was about to join, ended just then
                raise LeaseLost(f"{self.claim}: the claim was ended by somebody else or expired; claim again")
        return None

    def _began_before(self, outcome: Outcome) -> None:
        """Its wait began when the claim's did, perhaps in another process."""
        if outcome.claim_id == self._began_with:
            return  # that counts once: the store's clock may be set while this one waits
        self._began_with = outcome.claim_id
        waited_before = 0.0 if outcome.joined else outcome.waited_seconds  # a wait that is over was that of another
        self.started_at = min(self.started_at, time.monotonic() - waited_before)

    def _skipped_before(self) -> Refused:
        self._engine.refused(self.claim, (), "skipped")
        return Refused(skipped=True)

    def _granted(self, outcome: Outcome, owner: Owner) -> Granted:
        waited = time.monotonic() - self.started_at
        session_id = None if self._probed else owner.session_id
        if outcome.observed:
            would_wait_for = shown(", ".join(outcome.observed))
            log.info("%s would have waited for %s: this installation only observes", self.claim, would_wait_for)
        lease = Lease(self._engine, self.claim, self.claim_id, outcome.slots, session_id, waited, outcome.observed)
        if self.claim.kind is not ClaimKind.RUN_POOL:  # that is the run's from now on, not this process's to give back
            self._lease = lease = self._engine.leases.keep(lease, told_before=outcome.joined)
        self._engine.leases.forget(self.claim_id, self)
        return Granted(lease)

    # -- leaving ------------------------------------------------------------------------------------------------------

    def withdraw(self) -> None:
        """Leave the queue, or give back what was granted meanwhile."""
        for late in self._run_pools.values():
            if late.queued:
                late.withdraw()
        if self._lease is not None:
            self._lease.release()
            return
        engine = self._engine
        with engine.leases.alone_for(self.claim):
            held_here = engine.leases.find(self.claim_id) is not None
            if engine.leases.leave_to_others(self.claim_id, self):
                self.queued = False
                return
            try:
                session_id = None if self.ticket else engine.session_id()
                # What another holds by now, this one has only waited for: all tasks of a run wait for its one claim,
                # and the store does not know how many hold a run that its host answers for.
                shared = self.ticket or self._probed
                engine.store.release(self.claim_id, session_id, unless_held=shared and not held_here)
            finally:
                # Should that have failed, the next beat ends what nobody answers for.
                engine.leases.forget(self.claim_id, self)
                self.queued = False

    def hand_over(self, *, ticket_seconds: float, eligible_after_seconds: float = 0.0) -> str:
        """Leave the waiter as a ticket that keeps its place; whoever steps the claim next adopts it.

        One that waits for a late pool of its run leaves that place. Not granted before `eligible_after_seconds` have
        passed. Raises LeaseLost if the claim is not ours any more.
        """
        late = [late for late in self._run_pools.values() if late.queued]
        for waiter in late:  # what was granted meanwhile is the run's already
            self._engine.store.hand_over(waiter.claim_id, self._engine.session_id(), ticket_seconds=ticket_seconds)
            self._engine.leases.forget(waiter.claim_id, waiter)
        if late and not self.queued:
            return self.claim_id
        handed = self._engine.store.hand_over(
            self.claim_id,
            self._engine.session_id(),
            ticket_seconds=ticket_seconds,
            eligible_after_seconds=eligible_after_seconds,
        )
        self._engine.leases.forget(self.claim_id, self)
        if not handed:
            raise LeaseLost(f"{self.claim}: the claim was lost before it could be handed over; claim again")
        return self.claim_id

    def undo(self) -> None:
        """Leave nothing behind; the plugins hear that it was withdrawn. Why it is undone is not hidden by a store that
        is away: it hears of this at the next beat.
        """
        held = self._lease is not None
        try:
            self.withdraw()
        except StoreUnavailable as error:
            log.warning("%s: withdrawn, which the store hears of at the next beat: %s", self.claim, error)
        if not held:
            self._engine.refused(self.claim, (), "withdrawn", time.monotonic() - self.started_at)

    def leave_queue(self) -> None:
        """The wait has ended in an error: nobody comes back for its place, unless it is a ticket's."""
        if not self.ticket and (self.queued or any(late.queued for late in self._run_pools.values())):
            self.undo()

    def go_without_limits(self) -> Lease:
        """Go on with nothing in hand."""
        self.forget()
        return self._engine.without_limits(self.claim)

    def forget(self) -> None:
        """Nobody comes back for it. Should the store have let it in or queued it, the next beat ends that."""
        for asked in (self, *self._run_pools.values()):
            self._engine.leases.forget(asked.claim_id, asked)
            asked.queued = False
