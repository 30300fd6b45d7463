"""What a store in memory keeps, and what is read of it: the configuration, the limits, the claims, the history."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from penstock.claim import Claim, ClaimKind, Liveness
from penstock.decision import HeldSlot, Reason
from penstock.errors import ConfigChanged, DeploymentConflict
from penstock.queue import Queue, reasons_for
from penstock.rules import Source
from penstock.settings import StoreTimes
from penstock.store.asking import HEARD_OF
from penstock.store.contract import (
    ClaimRow,
    ClaimState,
    Deployment,
    Event,
    HistoryRow,
    LimitRow,
    RunLease,
    Session,
    SessionRow,
    Snapshot,
    StoredConfiguration,
)
from penstock.store.reservation import Room, Waiter


@dataclass
class Entry:
    """A claim as it stands; times in µs."""

    claim: Claim
    wants: dict[str, int]
    version: int
    rank: int
    enqueued_at: int
    eligible_at: int
    state: ClaimState
    sessions: set[str] = field(default_factory=set)
    deadline: int | None = None
    liveness: Liveness = Liveness.SESSION
    observed: bool = False
    granted_at: int | None = None
    ended_at: int | None = None
    expired: bool = False
    slots: tuple[HeldSlot, ...] = ()


class Rows:
    """Its part of `penstock.store.contract.Store`. One process only; every method runs under one lock."""

    url = "memory://"

    def __init__(self, *, times: StoreTimes | None = None) -> None:
        self.times = times or StoreTimes()
        self.clock_shift = 0
        self._lock = threading.RLock()
        self._documents: list[Mapping[str, Any]] = [{}]
        self._changed_at = -HEARD_OF
        self._settled = 0
        self._limits: dict[str, tuple[int | None, Source]] = {}
        self._sessions: dict[str, tuple[Session, int]] = {}
        self._claims: dict[str, Entry] = {}
        self._history: list[HistoryRow] = []
        self._pruned_before = 0
        self._deployments: dict[tuple[str, str], str] = {}
        self.on_granted: list[Callable[[Collection[str]], None]] = []

    def _now(self) -> int:
        return time.time_ns() // 1000 + self.clock_shift

    # -- configuration and limits ------------------------------------------------------------------------------------

    def check_schema(self) -> None:
        """There are no tables."""

    def configuration(self) -> StoredConfiguration:
        version = len(self._documents) - 1
        return StoredConfiguration(version, self._documents[-1], settled=self._settled == version)

    def register(self, deployment: Deployment) -> None:
        with self._lock:
            there = self._deployments.setdefault((deployment.host, deployment.name), deployment.fingerprint)
            if there != deployment.fingerprint:
                raise DeploymentConflict(f"{deployment.host}/{deployment.name} is {there} already; name one otherwise")

    def deployments(self) -> tuple[Deployment, ...]:
        with self._lock:
            return tuple(Deployment(*where, fingerprint) for where, fingerprint in sorted(self._deployments.items()))

    def forget(self, host: str, name: str) -> bool:
        with self._lock:
            return self._deployments.pop((host, name), None) is not None

    def configure(
        self,
        document: Mapping[str, Any],
        *,
        expected_version: int,
        by: str,
        origin: str,
        changed: Mapping[str, int | None] | None = None,
    ) -> int:
        with self._lock:
            if expected_version != len(self._documents) - 1:
                raise ConfigChanged("the configuration was changed by somebody else; look again, then repeat")
            self._documents.append(dict(document))
            self._changed_at = self._now()
            detail = f"version {expected_version + 1} by {by} from {origin}"
            self._record(None, Event.CHANGED, detail=detail, changed=changed)
            return expected_version + 1

    def limit_rows(self) -> tuple[LimitRow, ...]:
        with self._lock:
            return tuple(
                LimitRow(key, capacity, source, self._held(key), *self._waiting(key))
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

    # -- reading -----------------------------------------------------------------------------------------------------

    def run_lease(self, holder: str) -> RunLease | None:
        with self._lock:
            claim_id = self._live(holder)
            if claim_id is None:
                return None
            entry = self._claims[claim_id]
            late = [
                other
                for other in self._claims.values()
                if other.claim.kind is ClaimKind.RUN_POOL and other.claim.parent_id == claim_id
            ]
            held = Counter(slot.limit for one in [entry, *late] for slot in one.slots)
            claim, expires_at = entry.claim, entry.deadline
            return RunLease(claim_id, entry.state, dict(held), claim.within, expires_at, claim.attempt, claim.priority)

    def to_touch(self, claim_ids: Sequence[str]) -> set[str]:
        with self._lock:
            version = len(self._documents) - 1
            known = {claim_id: self._claims[claim_id] for claim_id in claim_ids if claim_id in self._claims}
            waiting = {
                i for i, entry in known.items() if entry.state is ClaimState.WAITING and entry.version == version
            }
            return set(claim_ids) - waiting

    def reasons(self, claim_id: str) -> tuple[Reason, ...]:
        return reasons_for(self.snapshot(), claim_id)

    def reasons_against(self, wants: Mapping[str, int]) -> tuple[Reason, ...]:
        return Queue(self.snapshot()).barring_newcomer(wants)

    def snapshot_time(self) -> int:
        return self._now()

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
                    probed=entry.liveness is Liveness.PROBE,
                    observed=entry.observed,
                    eligible_at=entry.eligible_at,
                    version=entry.version,
                )
                for _, entry in sorted(self._claims.items(), key=lambda item: (item[1].rank, item[0]))
                if entry.state is not ClaimState.ENDED
            )
            return Snapshot(self._now(), self.limit_rows(), claims, sessions)

    def probed(self) -> tuple[ClaimRow, ...]:
        return tuple(row for row in self.snapshot().claims if row.probed)

    def history(self, *, since: int = 0) -> tuple[HistoryRow, ...]:
        with self._lock:
            return tuple(row for row in self._history if row.at >= max(since, self._pruned_before))

    # -- the plain facts -----------------------------------------------------------------------------------------------

    def _waiter(self, claim_id: str, entry: Entry) -> Waiter:
        parent = self._claims.get(entry.claim.parent_id or "")
        around = {held.limit for held in parent.slots} if parent is not None else set()
        return Waiter(claim_id, entry.enqueued_at, entry.wants, around)

    def _rooms(self) -> dict[str, Room]:
        return {
            key: Room(capacity, max(0, (capacity or 0) - self._held(key)))
            for key, (capacity, _) in self._limits.items()
        }

    def _held(self, key: str) -> int:
        return sum(held.limit == key for entry in self._claims.values() for held in entry.slots)

    def _waiting(self, key: str) -> tuple[int, int | None]:
        """How many wait for it, and since when the first of them."""
        since = [e.enqueued_at for e in self._claims.values() if e.state is ClaimState.WAITING and key in e.wants]
        return len(since), min(since, default=None)

    def _numbers(self, key: str, count: int) -> list[int]:
        taken = {held.slot for entry in self._claims.values() for held in entry.slots if held.limit == key}
        return [n for n in range(1, len(taken) + count + 1) if n not in taken][:count]

    def _live(self, holder: str | None) -> str | None:
        return next(
            (
                claim_id
                for claim_id, entry in self._claims.items()
                if holder is not None and entry.state is not ClaimState.ENDED and entry.claim.holder == holder
            ),
            None,
        )

    def _record(
        self,
        claim_id: str | None,
        event: Event,
        *,
        hold_seconds: float | None = None,
        detail: str | None = None,
        changed: Mapping[str, int | None] | None = None,
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
                slots=dict(entry.wants) if entry else dict(changed or {}),
                wait_seconds=(now - entry.enqueued_at) / 1_000_000 if granted and entry else None,
                hold_seconds=hold_seconds,
                detail=detail,
            )
        )


def us(seconds: float) -> int:
    """Seconds in µs."""
    return int(seconds * 1_000_000)
