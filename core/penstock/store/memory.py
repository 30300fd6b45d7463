"""The contract in memory, as plainly as it can be said: the oracle that the SQL store is held against in the tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from penstock.claim import Claim, ClaimKind
from penstock.decision import HeldSlot
from penstock.errors import ConfigChanged
from penstock.rules import Demand, Source
from penstock.settings import StoreTimes
from penstock.store.admission import rank
from penstock.store.contract import (
    ClaimRow,
    ClaimState,
    Event,
    HistoryRow,
    LimitRow,
    Outcome,
    Owner,
    Result,
    Session,
    SessionRow,
    Snapshot,
    StoredConfiguration,
)

HOLDING = (ClaimState.GRANTED, ClaimState.HELD)


@dataclass
class _Entry:
    claim: Claim
    wants: dict[str, int]
    version: int
    rank: int
    enqueued_at: int
    eligible_at: int
    state: ClaimState
    sessions: set[str] = field(default_factory=set)
    deadline: int | None = None
    probed: bool = False
    granted_at: int | None = None
    ended_at: int | None = None
    expired: bool = False
    slots: tuple[HeldSlot, ...] = ()


class MemoryStore:
    """See `penstock.store.contract.Store`. One process only; every method runs under one lock."""

    url = "memory://"

    def __init__(self, *, times: StoreTimes | None = None) -> None:
        self.times = times or StoreTimes()
        self.clock_shift = 0
        self._lock = threading.RLock()
        self._documents: list[Mapping[str, Any]] = [{}]
        self._settled = 0
        self._limits: dict[str, tuple[int | None, Source]] = {}
        self._sessions: dict[str, tuple[Session, int]] = {}
        self._claims: dict[str, _Entry] = {}
        self._history: list[HistoryRow] = []
        self._epoch = 0

    def _now(self) -> int:
        return time.time_ns() // 1000 + self.clock_shift

    # -- configuration and limits ------------------------------------------------------------------------------------

    def configuration(self) -> StoredConfiguration:
        return StoredConfiguration(len(self._documents) - 1, self._documents[-1])

    def configuration_is_settled(self) -> bool:
        return self._settled == len(self._documents) - 1

    def configure(self, document: Mapping[str, Any], *, expected_version: int, by: str, origin: str) -> int:
        with self._lock:
            if expected_version != len(self._documents) - 1:
                raise ConfigChanged("the configuration was changed by somebody else; look again, then repeat")
            self._documents.append(dict(document))
            self._record(None, Event.CHANGED, detail=f"version {expected_version + 1} by {by} from {origin}")
            return expected_version + 1

    def limit_rows(self) -> tuple[LimitRow, ...]:
        with self._lock:
            return tuple(
                LimitRow(key, capacity, source, self._held(key), self._waiting(key))
                for key, (capacity, source) in sorted(self._limits.items())
            )

    def settle(self, key: str, capacity: int | None, source: Source, *, version: int) -> bool:
        with self._lock:
            if version != len(self._documents) - 1:
                return False
            self._limits[key] = (capacity, source)
            return True

    def settled(self, version: int) -> None:
        self._settled = max(self._settled, version)

    # -- sessions ----------------------------------------------------------------------------------------------------

    def open_session(self, session: Session) -> None:
        with self._lock:
            self._sessions[session.session_id] = (session, self._now() + _us(session.ttl_seconds))

    def beat(self, session_id: str, known: Callable[[], Collection[str]]) -> bool:
        with self._lock:
            if session_id not in self._sessions:
                return False
            session = self._sessions[session_id][0]
            self.open_session(session)
            mine = {
                claim_id
                for claim_id, entry in self._claims.items()
                if entry.claim.kind is ClaimKind.OP and session_id in entry.sessions
            }
            for claim_id in mine - set(known()):
                self.release(claim_id, session_id)
            return True

    def close_session(self, session_id: str) -> None:
        with self._lock:
            self._sessions.pop(session_id, None)
            for claim_id, entry in list(self._claims.items()):
                if session_id in entry.sessions:
                    self.release(claim_id, session_id)

    # -- claims ------------------------------------------------------------------------------------------------------

    def acquire(
        self,
        claim: Claim,
        demands: Sequence[Demand],
        *,
        version: int,
        owner: Owner,
        wait: bool,
        eligible_after_seconds: float = 0.0,
    ) -> Outcome:
        with self._lock:
            if (refused := self._refused(claim.claim_id, version, owner)) is not None:
                return refused
            known = claim.claim_id if claim.claim_id in self._claims else self._live(claim.holder)
            if known is not None:
                outcome = self.touch(known, demands, version=version, owner=owner)
                return replace(outcome, result=Result.NO_ROOM) if _no_wait(outcome, wait) else outcome
            for demand in demands:
                self._limits[demand.key] = (demand.capacity, demand.source)
            now = self._now()
            entry = _Entry(
                claim=claim,
                wants={demand.key: demand.slots for demand in demands},
                version=version,
                rank=rank(now, claim.priority),
                enqueued_at=now,
                eligible_at=now + _us(eligible_after_seconds),
                state=ClaimState.WAITING,
            )
            self._own(entry, owner, held=False)
            self._claims[claim.claim_id] = entry
            self.grant_pass()
            if entry.state is ClaimState.WAITING and not wait:
                del self._claims[claim.claim_id]
                return Outcome(Result.NO_ROOM, claim.claim_id)
            return self._speak(claim.claim_id, entry, owner)

    def touch(self, claim_id: str, demands: Sequence[Demand], *, version: int, owner: Owner) -> Outcome:
        with self._lock:
            entry = self._claims.get(claim_id)
            if entry is None or entry.state is ClaimState.ENDED:
                lost = entry is not None and entry.expired and owner.session_id is not None
                return Outcome(Result.SESSION_LOST if lost else Result.ENDED, claim_id)
            is_op = entry.claim.kind is ClaimKind.OP
            if is_op and entry.sessions and owner.session_id not in entry.sessions:
                return Outcome(Result.BUSY, claim_id)
            if entry.state not in HOLDING:
                if (refused := self._refused(claim_id, version, owner)) is not None:
                    return refused
                for demand in demands:
                    self._limits[demand.key] = (demand.capacity, demand.source)
                entry.wants = {demand.key: demand.slots for demand in demands}
                entry.version, entry.state = version, ClaimState.WAITING
                self._own(entry, owner, held=False)
                self.grant_pass()
            return self._speak(claim_id, entry, owner)

    def _speak(self, claim_id: str, entry: _Entry, owner: Owner) -> Outcome:
        adopted = entry.state is ClaimState.HELD and not entry.sessions and owner.session_id is not None
        self._own(entry, owner, held=entry.state in HOLDING)
        if entry.state not in HOLDING:
            return Outcome(Result.WAITING, claim_id)
        if adopted and not entry.probed and entry.claim.kind is ClaimKind.OP:
            self._epoch += 1
            entry.slots = tuple(replace(held, epoch=self._epoch) for held in entry.slots)
        entry.state = ClaimState.HELD
        return Outcome(Result.HELD, claim_id, entry.slots)

    def hand_over(
        self, claim_id: str, session_id: str, *, ticket_seconds: float, eligible_after_seconds: float = 0.0
    ) -> bool:
        with self._lock:
            entry = self._claims.get(claim_id)
            if entry is None or session_id not in entry.sessions:
                return False
            entry.sessions.clear()
            entry.deadline = self._now() + _us(ticket_seconds)
            entry.eligible_at = max(entry.eligible_at, self._now() + _us(eligible_after_seconds))
            return True

    def release(self, claim_id: str, session_id: str | None) -> bool:
        with self._lock:
            entry = self._claims.get(claim_id)
            if entry is None or entry.state is ClaimState.ENDED:
                return False
            if entry.claim.kind is ClaimKind.OP and not entry.sessions and session_id is not None:
                return False  # handed over
            if entry.sessions and session_id not in entry.sessions:
                return False
            entry.sessions.discard(session_id or "")
            if entry.sessions:
                return True
            self._end(claim_id, Event.RELEASED if entry.state in HOLDING else Event.WITHDRAWN)
            self.grant_pass()
            return True

    def end(self, claim_id: str, *, reason: str) -> bool:
        with self._lock:
            entry = self._claims.get(claim_id)
            if entry is None or entry.state is ClaimState.ENDED:
                return False
            self._end(claim_id, Event.RELEASED if entry.state in HOLDING else Event.WITHDRAWN, reason)
            self.grant_pass()
            return True

    def live_claim(self, holder: str) -> str | None:
        with self._lock:
            return self._live(holder)

    # -- granting and upkeep -----------------------------------------------------------------------------------------

    def grant_pass(self) -> int:
        with self._lock:
            granted, now = 0, self._now()
            for claim_id, entry in sorted(self._claims.items(), key=lambda item: (item[1].rank, item[0])):
                current = entry.version == len(self._documents) - 1 and entry.eligible_at <= now
                if entry.state is ClaimState.WAITING and current and self._fits(entry):
                    self._epoch += 1
                    entry.slots = tuple(
                        HeldSlot(key, n, self._epoch)
                        for key, slots in sorted(entry.wants.items())
                        for n in self._numbers(key, slots)
                    )
                    entry.state, entry.granted_at = ClaimState.GRANTED, now
                    self._record(claim_id, Event.GRANTED)
                    granted += 1
            return granted

    def sweep(self) -> None:
        with self._lock:
            now, times = self._now(), self.times
            for session_id, (_, expires_at) in list(self._sessions.items()):
                if expires_at < now - _us(times.grace_seconds):
                    del self._sessions[session_id]
            for claim_id, entry in list(self._claims.items()):
                if entry.state is ClaimState.ENDED:
                    if (entry.ended_at or 0) < now - _us(times.tombstone_seconds):
                        del self._claims[claim_id]
                    continue
                had, entry.sessions = bool(entry.sessions), entry.sessions & self._sessions.keys()
                if (had and not entry.sessions) or (entry.deadline is not None and entry.deadline < now):
                    entry.expired = True
                    self._end(claim_id, Event.EXPIRED)
                    continue
                patience = times.acknowledge_seconds if entry.sessions else times.acknowledge_ticket_seconds
                if entry.state is ClaimState.GRANTED and (entry.granted_at or 0) < now - _us(patience):
                    entry.state, entry.slots, entry.granted_at = ClaimState.PARKED, (), None
                    self._record(claim_id, Event.PARKED)
            self.grant_pass()

    # -- reading -----------------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        with self._lock:
            sessions = tuple(SessionRow(session, at) for _, (session, at) in sorted(self._sessions.items()))
            expiry = {row.session.session_id: row.expires_at for row in sessions}
            claims = tuple(
                ClaimRow(
                    claim=entry.claim,
                    state=entry.state,
                    wants=dict(entry.wants),
                    rank=entry.rank,
                    enqueued_at=entry.enqueued_at,
                    granted_at=entry.granted_at,
                    expires_at=entry.deadline or max((expiry[s] for s in entry.sessions if s in expiry), default=None),
                    slots=entry.slots,
                    session_ids=tuple(sorted(entry.sessions)),
                    probed=entry.probed,
                )
                for _, entry in sorted(self._claims.items(), key=lambda item: (item[1].rank, item[0]))
                if entry.state is not ClaimState.ENDED
            )
            return Snapshot(self._now(), self.limit_rows(), claims, sessions)

    def history(self, *, since: int = 0) -> tuple[HistoryRow, ...]:
        with self._lock:
            return tuple(row for row in self._history if row.at >= since)

    def after_fork(self) -> None:
        self._lock = threading.RLock()

    def close(self) -> None:
        """Nothing to give back."""

    # -- the plain facts ---------------------------------------------------------------------------------------------

    def _held(self, key: str) -> int:
        return sum(held.limit == key for entry in self._claims.values() for held in entry.slots)

    def _waiting(self, key: str) -> int:
        return sum(key in e.wants for e in self._claims.values() if e.state is ClaimState.WAITING)

    def _fits(self, entry: _Entry) -> bool:
        capacities = {key: self._limits[key][0] for key in entry.wants}
        return all(
            (capacity := capacities[key]) is None or capacity - self._held(key) >= slots
            for key, slots in entry.wants.items()
        )

    def _numbers(self, key: str, count: int) -> list[int]:
        taken = {held.slot for entry in self._claims.values() for held in entry.slots if held.limit == key}
        return [n for n in range(1, len(taken) + count + 1) if n not in taken][:count]

    def _refused(self, claim_id: str, version: int, owner: Owner) -> Outcome | None:
        if version != len(self._documents) - 1:
            return Outcome(Result.STALE, claim_id)
        if owner.session_id is not None and owner.session_id not in self._sessions:
            return Outcome(Result.SESSION_LOST, claim_id)
        return None

    def _live(self, holder: str | None) -> str | None:
        return next(
            (
                claim_id
                for claim_id, entry in self._claims.items()
                if holder is not None and entry.state is not ClaimState.ENDED and entry.claim.holder == holder
            ),
            None,
        )

    def _own(self, entry: _Entry, owner: Owner, *, held: bool) -> None:
        entry.probed = owner.probe_seconds is not None and held
        if owner.session_id is not None and owner.probe_seconds is None:
            entry.sessions.add(owner.session_id)
            entry.deadline = None
        else:
            seconds = owner.probe_seconds if entry.probed and owner.probe_seconds else owner.ticket_seconds
            entry.deadline = self._now() + _us(seconds)

    def _end(self, claim_id: str, event: Event, detail: str | None = None) -> None:
        entry = self._claims[claim_id]
        held_since = entry.granted_at
        entry.state, entry.slots, entry.sessions, entry.deadline = ClaimState.ENDED, (), set(), None
        entry.ended_at = self._now()
        hold = None if held_since is None else (entry.ended_at - held_since) / 1_000_000
        self._record(claim_id, event, hold_seconds=hold, detail=detail)

    def _record(
        self, claim_id: str | None, event: Event, *, hold_seconds: float | None = None, detail: str | None = None
    ) -> None:
        entry = self._claims[claim_id] if claim_id is not None else None
        now = self._now()
        granted = event is Event.GRANTED and entry is not None
        self._history.append(
            HistoryRow(
                at=now,
                event=event,
                claim_id=claim_id,
                host=entry.claim.host if entry else None,
                deployment=entry.claim.deployment if entry else None,
                label=entry.claim.label if entry else None,
                slots=dict(entry.wants) if entry else {},
                wait_seconds=(now - entry.enqueued_at) / 1_000_000 if granted and entry else None,
                hold_seconds=hold_seconds,
                detail=detail,
            )
        )


def _us(seconds: float) -> int:
    return int(seconds * 1_000_000)


def _no_wait(outcome: Outcome, wait: bool) -> bool:
    return not wait and outcome.result is Result.WAITING
