"""What a store is asked to admit, in the form that its statements take, and what they answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from penstock.claim import Claim, ClaimKind, Liveness
from penstock.decision import HeldSlot
from penstock.rules import Demand
from penstock.store.contract import ClaimState, Mode, Outcome, Owner, Result
from penstock.store.digests import digest

PRIORITY_STEP = 60_000_000
PRIORITY_BOUND = 3_600_000_000
AGED = 300_000_000
"""A waiter is aged after so many µs; see penstock.store.reservation."""
HEARD_OF = 2_000_000
"""µs in which a waiter can have heard of a new configuration; until then nobody behind it passes it."""
# However many wait in a process, it has few connections. Whoever takes one ends its transaction: a reset when it comes
# back would be one more round trip.
CONNECTIONS = 4
POOL: dict[str, Any] = {"max_overflow": 0, "pool_use_lifo": True, "pool_reset_on_return": None}
# The recursion hops from one limit with waiters to the next, however long their queues are.
QUEUED = """queued (limit_id) AS (
    SELECT min(limit_id) FROM penstock_waiter
    UNION ALL
    SELECT (SELECT min(w.limit_id) FROM penstock_waiter w WHERE w.limit_id > queued.limit_id)
    FROM queued WHERE queued.limit_id IS NOT NULL)"""


def look(queued: str) -> str:
    """Whether a limit with waiters has room, and whether one drains; `queued` finds the limits that have waiters."""
    return f"""
WITH RECURSIVE {queued}
SELECT EXISTS (
    SELECT 1 FROM queued JOIN penstock_limit l ON l.id = queued.limit_id
    WHERE l.capacity IS NULL
        OR EXISTS (SELECT 1 FROM penstock_slot s WHERE s.limit_id = l.id AND s.claim_id IS NULL AND s.usable)
), EXISTS (SELECT 1 FROM penstock_limit WHERE draining)
"""


LOOK = look(QUEUED)
OVERFLOW = 1 << 39
"""Distance between the numbers of slots that one claim takes of a limit without capacity."""


WHY_EXPIRED = {
    Liveness.SESSION: "its process has not been heard of for too long",
    Liveness.TICKET: "nobody came back for it in time",
    Liveness.PROBE: "nobody could say for too long whether its run still lives",
    Liveness.PARENT: "its run is over",
}


def boost(priority: int) -> int:
    """How much earlier (µs) a claim of this priority counts as enqueued: 60 s for each step, an hour at most."""
    return max(-PRIORITY_BOUND, min(PRIORITY_BOUND, priority * PRIORITY_STEP))


def rank(now: int, priority: int) -> int:
    """The place in the queue: µs, lower first."""
    return now - boost(priority)


@dataclass(frozen=True, slots=True)
class Ownership:
    """Who keeps a claim alive: the columns `liveness`, `session_id`, and `deadline` as µs from now (None: none)."""

    liveness: Liveness
    session_id: str | None
    deadline_after: int | None


def ownership(kind: ClaimKind, owner: Owner, *, held: bool) -> Ownership:
    """Who keeps a claim alive while it waits, or while it holds. A run belongs to all sessions that joined it."""
    if kind is ClaimKind.RUN_POOL and held:
        return Ownership(Liveness.PARENT, None, None)
    if owner.probe_seconds is not None and held:
        return Ownership(Liveness.PROBE, None, int(owner.probe_seconds * 1_000_000))
    if owner.session_id is not None and owner.probe_seconds is None:
        return Ownership(Liveness.SESSION, owner.session_id if kind is ClaimKind.OP else None, None)
    return Ownership(Liveness.TICKET, None, int(owner.ticket_seconds * 1_000_000))


def joins(kind: ClaimKind, owner: Owner) -> bool:
    """Whether the owner's session becomes a member of the claim: of a run's, unless the host answers for the run."""
    return kind is not ClaimKind.OP and owner.session_id is not None and owner.probe_seconds is None


def no_room_again(outcome: Outcome, claim: Claim, mode: Mode) -> Outcome:
    """What came of asking for a claim that was there: one that does not wait is told as when it came first."""
    skipped_by_this = mode is Mode.SKIP and outcome == Outcome(Result.SKIPPED, claim.claim_id)
    if skipped_by_this or (mode is not Mode.WAIT and outcome.result is Result.WAITING):
        return replace(outcome, result=Result.NO_ROOM)
    return outcome


@dataclass(frozen=True, slots=True)
class Ask:
    """A claim that is to be admitted, or queued if `wait`."""

    claim: Claim
    demands: tuple[Demand, ...]
    version: int
    owner: Owner
    wait: bool
    eligible_after: int
    clock_shift: int

    @property
    def limited(self) -> bool:
        """Whether any demand is bounded."""
        return any(demand.capacity is not None for demand in self.demands)

    @property
    def unlimited(self) -> bool:
        """Whether any demand is not."""
        return any(demand.capacity is None for demand in self.demands)

    def columns(self) -> dict[str, Any]:
        """Those of the claim's row that do not depend on what becomes of it."""
        claim, holder = self.claim, self.claim.holder
        return {
            "id": claim.claim_id,
            "live_holder": digest(holder) if holder is not None else None,
            "kind": claim.kind.value,
            "host": claim.host,
            "deployment": claim.deployment,
            "run_id": claim.run_id,
            "op_id": claim.op_id,
            "attempt": claim.attempt,
            "in_run": claim.in_run,
            "pools": dict(claim.pools),
            "tags": dict(claim.tags),
            "priority": claim.priority,
            "url": claim.url,
            "demands": {demand.key: demand.slots for demand in self.demands},
            "version": self.version,
            "parent_id": claim.parent_id,
            "within": dict(claim.within) if claim.within is not None else None,
            "name": claim.name,
        }

    def parameters(self) -> dict[str, Any]:
        """Everything by name, as the statements take it; JSON as text."""
        claim = self.claim
        waiting = ownership(claim.kind, self.owner, held=False)
        holding = ownership(claim.kind, self.owner, held=True)
        columns = self.columns()
        return {
            **{name: json.dumps(value) if isinstance(value, dict) else value for name, value in columns.items()},
            "label": claim.label,
            "boost": boost(claim.priority),
            "owner_id": self.owner.session_id,
            "wait": self.wait,
            "eligible_after": self.eligible_after,
            "shift": self.clock_shift,
            "waiting_liveness": waiting.liveness.value,
            "waiting_session": waiting.session_id,
            "waiting_after": waiting.deadline_after,
            "holding_liveness": holding.liveness.value,
            "holding_session": holding.session_id,
            "holding_after": holding.deadline_after,
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """`state` is what became of the claim: held, waiting, or None: nothing was written, for the reason that shows."""

    version: int
    alive: bool
    settled: int
    state: ClaimState | None
    slots: tuple[HeldSlot, ...] = ()


def held_slots(rows: Sequence[tuple[str, int, int]]) -> tuple[HeldSlot, ...]:
    """(limit key, slot, epoch) in order."""
    return tuple(HeldSlot(*row) for row in sorted(rows))
