"""The contract in memory, as plainly as it can be said: the oracle that the SQL store is held against in the tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from penstock.claim import Claim, ClaimKind, Liveness
from penstock.decision import HeldSlot
from penstock.rules import Demand
from penstock.store.asking import HEARD_OF, WHY_EXPIRED, joins, no_room_again, ownership, rank
from penstock.store.contract import (
    ClaimState,
    Event,
    Expired,
    Mode,
    Outcome,
    Owner,
    Result,
    Session,
    Swept,
)
from penstock.store.memory_rows import Entry, us
from penstock.store.memory_views import Views
from penstock.store.reservation import Reservations, fits, reservations

HOLDING = (ClaimState.GRANTED, ClaimState.HELD)
SKIPPED_SECONDS = 24 * 3600.0


class MemoryStore(Views):
    """See `penstock.store.contract.Store`. One process only; every method runs under one lock."""

    # -- sessions ----------------------------------------------------------------------------------------------------

    def open_session(self, session: Session) -> None:
        with self._lock:
            self._sessions[session.session_id] = (session, self._now() + us(session.ttl_seconds))

    def beat(self, session_id: str, known: Callable[[], Collection[str]]) -> bool:
        with self._lock:
            if session_id not in self._sessions:
                return False
            session = self._sessions[session_id][0]
            self.open_session(session)
            mine = {
                claim_id
                for claim_id, entry in self._claims.items()
                if entry.claim.holder is None and session_id in entry.sessions
            }
            for claim_id in sorted(mine - set(known()), key=self._order_of_leaving):
                self.release(claim_id, session_id)
            return True

    def joined(self, session_id: str) -> tuple[Claim, ...]:
        with self._lock:
            mine = [
                claim_id
                for claim_id, entry in self._claims.items()
                if entry.claim.holder is not None
                and entry.liveness is Liveness.SESSION
                and entry.state is not ClaimState.ENDED
                and session_id in entry.sessions
            ]
            return tuple(self._claims[claim_id].claim for claim_id in sorted(mine, key=self._order_of_leaving))

    def close_session(self, session_id: str) -> None:
        with self._lock:
            self._sessions.pop(session_id, None)
            mine = [claim_id for claim_id, entry in self._claims.items() if session_id in entry.sessions]
            for claim_id in sorted(mine, key=self._order_of_leaving):
                self.release(claim_id, session_id)
                self._claims[claim_id].sessions.discard(session_id)

    def _order_of_leaving(self, claim_id: str) -> tuple[bool, str]:
        """Those that wait first: none of them is granted what the others leave."""
        return self._claims[claim_id].state in HOLDING, claim_id

    # -- claims ------------------------------------------------------------------------------------------------------

    def acquire(
        self,
        claim: Claim,
        demands: Sequence[Demand],
        *,
        version: int,
        owner: Owner,
        mode: Mode = Mode.WAIT,
        eligible_after_seconds: float = 0.0,
    ) -> Outcome:
        with self._lock:
            if (refused := self._refused(claim.claim_id, version, owner)) is not None:
                return refused
            for demand in demands:
                self._limits[demand.key] = (demand.capacity, demand.source)
            known = claim.claim_id if claim.claim_id in self._claims else self._live(claim.holder)
            if known is not None:
                outcome = self.touch(known, demands, version=version, owner=owner)
                return no_room_again(outcome, claim, mode)
            entry = self._new_entry(claim, demands, version, eligible_after_seconds if demands else 0.0)
            self._own(entry, owner, held=False)
            self._claims[claim.claim_id] = entry
            self._pass()
            if entry.state is not ClaimState.WAITING:
                return self._speak(claim.claim_id, entry, owner)
            match mode:
                case Mode.WAIT:
                    return Outcome(Result.WAITING, claim.claim_id)
                case Mode.OBSERVE:
                    return self._observe(claim.claim_id, entry, owner)
                case Mode.SKIP if claim.kind is ClaimKind.RUN:
                    entry.state, entry.sessions, entry.liveness = ClaimState.SKIPPED, set(), Liveness.TICKET
                    entry.deadline = self._now() + us(SKIPPED_SECONDS)
                    self._record(claim.claim_id, Event.SKIPPED)
                case _:
                    del self._claims[claim.claim_id]
            return Outcome(Result.NO_ROOM, claim.claim_id)

    def _new_entry(self, claim: Claim, demands: Sequence[Demand], version: int, eligible_after: float) -> Entry:
        now = self._now()
        return Entry(
            claim=claim,
            wants={demand.key: demand.slots for demand in demands},
            version=version,
            rank=rank(now, claim.priority),
            enqueued_at=now,
            eligible_at=now + us(eligible_after),
            state=ClaimState.WAITING,
        )

    def _observe(self, claim_id: str, entry: Entry, owner: Owner) -> Outcome:
        """Admitted all the same, above the capacity; what would have barred it is noted."""
        reserved = self._reserved()
        short = tuple(
            key
            for key, slots in sorted(entry.wants.items())
            if self._unresolved_ahead(key, entry)
            or not fits(
                replace(self._waiter(claim_id, entry), wants={key: slots}), self._rooms(), reserved, self._now()
            )
        )
        self._grant(claim_id, entry)
        entry.observed = True
        self._record(claim_id, Event.OBSERVED, detail="would have waited for " + ", ".join(short))
        return replace(self._speak(claim_id, entry, owner), observed=short)

    def touch(self, claim_id: str, demands: Sequence[Demand], *, version: int, owner: Owner) -> Outcome:
        with self._lock:
            entry = self._claims.get(claim_id)
            if entry is None or entry.state is ClaimState.ENDED:
                expired = (entry is None or entry.expired) and owner.session_id is not None
                return Outcome(Result.EXPIRED if expired else Result.ENDED, claim_id)
            if entry.state is ClaimState.SKIPPED:
                return Outcome(Result.SKIPPED, claim_id)
            if self._is_in_other_hands(entry, owner):
                return Outcome(Result.BUSY, claim_id)
            current = version if entry.state not in HOLDING else len(self._documents) - 1
            if (refused := self._refused(claim_id, current, owner)) is not None:
                return refused
            if entry.state not in HOLDING:
                # Under one version the same claim comes to the same: what was asked first stands.
                if entry.state is not ClaimState.WAITING or entry.version != version:
                    for demand in demands:
                        self._limits[demand.key] = (demand.capacity, demand.source)
                    entry.wants = {demand.key: demand.slots for demand in demands}
                    entry.version, entry.state = version, ClaimState.WAITING
                self._own(entry, owner, held=False)
                if not entry.wants:  # nothing bars it any more
                    self._grant(claim_id, entry)
                self._pass()
            return self._speak(claim_id, entry, owner)

    def _speak(self, claim_id: str, entry: Entry, owner: Owner) -> Outcome:
        session_owns = ownership(entry.claim.kind, owner, held=True).liveness is Liveness.SESSION
        adopted = entry.state is ClaimState.HELD and entry.liveness is Liveness.TICKET and session_owns
        if entry.state not in HOLDING:
            self._own(entry, owner, held=False)
            waited = (self._now() - entry.enqueued_at) / 1_000_000
            return Outcome(Result.WAITING, claim_id, waited_seconds=waited)
        own = entry.claim.kind is ClaimKind.OP and owner.session_id in entry.sessions
        joined = entry.state is ClaimState.HELD and not own
        self._own(entry, owner, held=True)
        if adopted:
            self._record(claim_id, Event.ADOPTED)
            entry.slots = tuple(replace(held, epoch=len(self._history)) for held in entry.slots)
        entry.state = ClaimState.HELD
        waited = ((entry.granted_at or self._now()) - entry.enqueued_at) / 1_000_000
        return Outcome(Result.HELD, claim_id, entry.slots, joined=joined, waited_seconds=waited)

    def renew(self, claim_ids: Sequence[str], *, ticket_seconds: float) -> set[str]:
        with self._lock:
            live = {one for one in claim_ids if one in self._claims and self._claims[one].state is not ClaimState.ENDED}
            for claim_id in live:
                entry, deadline = self._claims[claim_id], self._now() + us(ticket_seconds)
                if entry.liveness in (Liveness.TICKET, Liveness.PROBE):
                    entry.deadline = max(entry.deadline or 0, deadline)
            return live

    def hand_over(
        self, claim_id: str, session_id: str, *, ticket_seconds: float, eligible_after_seconds: float = 0.0
    ) -> bool:
        with self._lock:
            entry = self._claims.get(claim_id)
            if entry is None or session_id not in entry.sessions or entry.liveness is Liveness.PARENT:
                return False
            if entry.claim.kind is ClaimKind.RUN and (entry.liveness, entry.sessions) != (
                Liveness.SESSION,
                {session_id},
            ):
                return False
            entry.sessions.discard(session_id)
            entry.liveness = Liveness.TICKET
            entry.deadline = self._now() + us(ticket_seconds)
            entry.eligible_at = max(entry.eligible_at, self._now() + us(eligible_after_seconds))
            return True

    def release(self, claim_id: str, session_id: str | None, *, unless_held: bool = False) -> bool:
        with self._lock:
            entry = self._claims.get(claim_id)
            if entry is None:
                claim = Claim(kind=ClaimKind.OP, host="", deployment="", claim_id=claim_id)
                self._claims[claim_id] = entry = self._new_entry(claim, (), 0, 0.0)
                entry.state, entry.ended_at = ClaimState.ENDED, self._now()
                return False
            if entry.state is ClaimState.ENDED or entry.liveness is Liveness.PARENT:
                return False
            if unless_held and entry.state is ClaimState.HELD:
                return False
            if entry.claim.kind is ClaimKind.OP and entry.sessions != ({session_id} - {None}):
                return False  # another's by now, or handed over
            entry.sessions.discard(session_id or "")
            if entry.sessions and entry.liveness is Liveness.SESSION:
                return True
            self._end(claim_id, Event.RELEASED if entry.state in HOLDING else Event.WITHDRAWN)
            self._pass()
            return True

    def end(self, claim_id: str, *, reason: str, expires_at: int | None = None) -> bool:
        with self._lock:
            entry = self._claims.get(claim_id)
            if entry is None or entry.state is ClaimState.ENDED or expires_at not in (None, entry.deadline):
                return False
            self._end(claim_id, Event.RELEASED if entry.state in HOLDING else Event.WITHDRAWN, reason)
            self._pass()
            return True

    # -- granting and upkeep -----------------------------------------------------------------------------------------

    def grant_pass(self) -> int:
        with self._lock:
            return self._pass()

    def _pass(self) -> int:
        """One look at everybody in the order of rank; who fits is granted, who does not bars nobody."""
        granted, now, reserved = [], self._now(), self._reserved()
        for claim_id, entry in sorted(self._claims.items(), key=lambda item: (item[1].rank, item[0])):
            if not self._able(entry) or any(self._unresolved_ahead(key, entry) for key in entry.wants):
                continue
            if fits(self._waiter(claim_id, entry), self._rooms(), reserved, now):
                self._grant(claim_id, entry)
                granted.append(claim_id)
        for tell in list(self.on_granted) if granted else ():
            tell(granted)
        return len(granted)

    def _able(self, entry: Entry) -> bool:
        current = entry.version == len(self._documents) - 1 and entry.eligible_at <= self._now()
        return entry.state is ClaimState.WAITING and current

    def _unresolved_ahead(self, key: str, entry: Entry) -> bool:
        """Whether a waiter before it there may not have heard of the configuration yet."""
        if self._now() >= self._changed_at + HEARD_OF:
            return False
        return any(
            other.state is ClaimState.WAITING and other.version != len(self._documents) - 1 and other.rank <= entry.rank
            for other in self._claims.values()
            if key in other.wants
        )

    def _reserved(self) -> Reservations:
        waiting = [self._waiter(claim_id, entry) for claim_id, entry in self._claims.items() if self._able(entry)]
        return reservations(waiting, self._rooms(), self._now())

    def _grant(self, claim_id: str, entry: Entry) -> None:
        entry.state, entry.granted_at = ClaimState.GRANTED, self._now()
        self._record(claim_id, Event.GRANTED)
        epoch = len(self._history)  # the number of the grant's event
        entry.slots = tuple(
            HeldSlot(key, n, epoch) for key, slots in sorted(entry.wants.items()) for n in self._numbers(key, slots)
        )

    def as_upkeep(self) -> AbstractContextManager[None]:
        return nullcontext()

    def sweep(self) -> Swept:
        with self._lock:
            now, times, expired = self._now(), self.times, list[Expired]()
            for session_id, (_, expires_at) in list(self._sessions.items()):
                if expires_at < now - us(times.grace_seconds):
                    del self._sessions[session_id]
            for claim_id, entry in list(self._claims.items()):
                if entry.state is ClaimState.ENDED:
                    if (entry.ended_at or 0) < now - us(times.tombstone_seconds):
                        del self._claims[claim_id]
                    continue
                entry.sessions &= self._sessions.keys()
                if self._is_unowned(entry):
                    held = None if entry.granted_at is None else (now - entry.granted_at) / 1_000_000
                    expired.append(Expired(entry.claim, held, WHY_EXPIRED[entry.liveness]))
                    self._end(claim_id, Event.EXPIRED, WHY_EXPIRED[entry.liveness])
                    continue
                if entry.state is ClaimState.GRANTED and (entry.granted_at or 0) < now - self._patience(entry):
                    entry.state, entry.slots, entry.granted_at = ClaimState.PARKED, (), None
                    self._record(claim_id, Event.PARKED)
            self._pass()
            return Swept(self._settled == len(self._documents) - 1, tuple(expired), len(self._sessions))

    def _patience(self, entry: Entry) -> float:
        """How long (µs) its grant may go unacknowledged."""
        if entry.liveness is not Liveness.SESSION:
            return us(self.times.acknowledge_ticket_seconds)
        waited = max(0, (entry.granted_at or 0) - entry.enqueued_at)
        return min(us(self.times.acknowledge_seconds), us(self.times.acknowledge_least_seconds) + waited / 2)

    def _is_unowned(self, entry: Entry) -> bool:
        match entry.liveness:
            case Liveness.SESSION:
                return not entry.sessions
            case Liveness.PARENT:
                parent = self._claims.get(entry.claim.parent_id or "")
                return parent is None or parent.state is ClaimState.ENDED
            case _:
                return entry.deadline is not None and entry.deadline < self._now()

    def prune(self, *, history_before: int, idle_before: int) -> dict[str, int]:
        with self._lock:
            dropped = sum(self._pruned_before <= row.at < history_before for row in self._history)
            self._pruned_before = max(self._pruned_before, history_before)
            # No limit is collected: in memory an idle one costs nothing.
            return {"history": dropped, "limits": 0}

    def listen(self, session_id: str | None) -> None:
        return None

    def after_fork(self) -> None:
        self._lock = threading.RLock()

    def close(self) -> None:
        """Nothing to give back."""

    # -- the plain facts ---------------------------------------------------------------------------------------------

    def _refused(self, claim_id: str, version: int, owner: Owner) -> Outcome | None:
        if version != len(self._documents) - 1:
            return Outcome(Result.STALE, claim_id)
        if owner.session_id is not None and owner.session_id not in self._sessions:
            return Outcome(Result.SESSION_LOST, claim_id)
        return None

    def _is_in_other_hands(self, entry: Entry, owner: Owner) -> bool:
        kept = entry.liveness is Liveness.SESSION and owner.session_id not in entry.sessions
        return kept and not joins(entry.claim.kind, owner)

    def _own(self, entry: Entry, owner: Owner, *, held: bool) -> None:
        keeper = ownership(entry.claim.kind, owner, held=held)
        entry.liveness = keeper.liveness
        entry.deadline = None if keeper.deadline_after is None else self._now() + keeper.deadline_after
        if owner.session_id is not None and joins(entry.claim.kind, owner):
            entry.sessions.add(owner.session_id)
        elif keeper.session_id is not None:
            entry.sessions = {keeper.session_id}
        elif entry.claim.kind is ClaimKind.OP:
            entry.sessions = set()

    def _end(self, claim_id: str, event: Event, detail: str | None = None) -> None:
        entry = self._claims[claim_id]
        for late_id, late in self._claims.items():
            if late.claim.kind is ClaimKind.RUN_POOL and late.claim.parent_id == claim_id and late.ended_at is None:
                self._end(late_id, event, detail)
        held_since = entry.granted_at
        entry.state, entry.slots, entry.sessions, entry.deadline = ClaimState.ENDED, (), set(), None
        entry.ended_at, entry.expired = self._now(), event is Event.EXPIRED
        hold = None if held_since is None else (entry.ended_at - held_since) / 1_000_000
        self._record(claim_id, event, hold_seconds=hold, detail=detail)
