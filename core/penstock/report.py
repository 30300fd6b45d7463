"""What people and scripts see of a store: the JSON of the command line, and the reasons for a wait. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from penstock.config import Concurrency
from penstock.decision import Reason
from penstock.rules import LimitKind, configured_keys, limit_kind, resolve_limit
from penstock.store.contract import ClaimRow, ClaimState, LimitRow, SessionRow, Snapshot

if TYPE_CHECKING:
    from penstock.rules import Demand

HOLDERS_SHOWN = 10


def rfc3339(microseconds: int | None) -> str | None:
    """A store's time as RFC 3339 in UTC."""
    if microseconds is None:
        return None
    seconds, rest = divmod(microseconds, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest).isoformat().replace("+00:00", "Z")


def describe(reasons: Sequence[Reason]) -> str:
    """The reasons in one line."""
    return "; ".join(map(str, reasons)) or "slots that have just become free"


def impossible_reasons(demands: Sequence[Demand]) -> tuple[Reason, ...]:
    """Why a claim could never be admitted."""
    return tuple(Reason(d.key, d.slots, d.capacity, 0) for d in demands if d.impossible)


def leases(snapshot: Snapshot) -> list[ClaimRow]:
    """Those that hold slots, oldest first."""
    rows = [row for row in snapshot.claims if row.state in (ClaimState.GRANTED, ClaimState.HELD)]
    return sorted(rows, key=lambda row: (row.granted_at or 0, row.claim.claim_id))


def waiters(snapshot: Snapshot) -> list[ClaimRow]:
    """Those in the queue, in its order."""
    rows = [row for row in snapshot.claims if row.state in (ClaimState.WAITING, ClaimState.PARKED)]
    return sorted(rows, key=lambda row: (row.rank, row.claim.claim_id))


def reasons_for(snapshot: Snapshot, claim_id: str) -> tuple[Reason, ...]:
    """The limits that bar a waiter now."""
    queue = waiters(snapshot)
    row = next((row for row in queue if row.claim.claim_id == claim_id), None)
    return _barring(snapshot, row, _ahead(queue, row)) if row is not None else ()


def demand_reasons(snapshot: Snapshot, demands: Sequence[Demand]) -> tuple[Reason, ...]:
    """The limits that bar a claim that did not stay to wait."""
    held = {row.key: row.held for row in snapshot.limits}
    return tuple(
        Reason(d.key, d.slots, d.capacity, held.get(d.key, 0), _holders(snapshot, d.key))
        for d in demands
        if d.capacity is not None and d.capacity - held.get(d.key, 0) < d.slots
    )


def _ahead(queue: list[ClaimRow], row: ClaimRow) -> list[ClaimRow]:
    """Waiters of lower rank that share a limit; parked ones left out."""
    mine = (row.rank, row.claim.claim_id)
    return [
        other
        for other in queue
        if other.state is ClaimState.WAITING
        and (other.rank, other.claim.claim_id) < mine
        and not row.wants.keys().isdisjoint(other.wants)
    ]


def _barring(snapshot: Snapshot, row: ClaimRow, ahead: list[ClaimRow]) -> tuple[Reason, ...]:
    limits = {limit.key: limit for limit in snapshot.limits}
    reasons = []
    for key, slots in sorted(row.wants.items()):
        limit = limits.get(key)
        if limit is None or limit.capacity is None:
            continue
        queued = sum(1 for other in ahead if key in other.wants)
        if limit.capacity - limit.held < slots or queued:
            reasons.append(Reason(key, slots, limit.capacity, limit.held, _holders(snapshot, key), queued))
    return tuple(reasons)


def _holding(snapshot: Snapshot, key: str) -> list[ClaimRow]:
    return [row for row in leases(snapshot) if any(held.limit == key for held in row.slots)][:HOLDERS_SHOWN]


def _holders(snapshot: Snapshot, key: str) -> tuple[str, ...]:
    return tuple(row.claim.label for row in _holding(snapshot, key))


def limit_json(row: LimitRow, concurrency: Concurrency) -> dict[str, Any]:
    """A limit as interface of `limits list`; `held` in slots, `waiting` in claims."""
    kind = limit_kind(row.key)
    name = row.key.removeprefix("pool:")
    own = concurrency.pools.limits.get(name) if kind is LimitKind.POOL else None
    return {
        "key": row.key,
        "kind": kind.value,
        "capacity": row.capacity,
        "held": row.held,
        "waiting": row.waiting,
        "granularity": concurrency.pool_granularity(name).value if kind is LimitKind.POOL else None,
        "source": row.source.value,
        "description": own.description if own is not None else None,
    }


def all_limits(rows: Sequence[LimitRow], concurrency: Concurrency) -> list[dict[str, Any]]:
    """Every limit in use or configured, by key, with the capacity that the configuration gives it now."""
    known = {row.key: row for row in rows}
    keys = sorted(known.keys() | set(configured_keys(concurrency)))
    result = []
    for key in keys:
        capacity, source = resolve_limit(key, concurrency)
        row = known.get(key)
        counts = (row.held, row.waiting) if row is not None else (0, 0)
        result.append(limit_json(LimitRow(key, capacity, source, *counts), concurrency))
    return result


def _claim_json(row: ClaimRow) -> dict[str, Any]:
    claim = row.claim
    return {
        "claim_id": claim.claim_id,
        "kind": claim.kind.value,
        "label": claim.label,
        "host": claim.host,
        "deployment": claim.deployment,
        "run_id": claim.run_id,
        "op_id": claim.op_id,
        "attempt": claim.attempt,
        "pools": dict(claim.pools),
        "tags": dict(claim.tags),
        "priority": claim.priority,
        "expires_at": rfc3339(row.expires_at),
        "url": claim.url,
    }


def lease_json(row: ClaimRow) -> dict[str, Any]:
    """A lease, as in `status`."""
    slots = [{"limit": held.limit, "slot": held.slot, "epoch": held.epoch} for held in row.slots]
    return {**_claim_json(row), "granted_at": rfc3339(row.granted_at), "slots": slots}


def waiter_json(snapshot: Snapshot, queue: list[ClaimRow], row: ClaimRow) -> dict[str, Any]:
    """A waiter, as in `status`, with its place and what bars it."""
    ahead = _ahead(queue, row)
    capacities = {limit.key: limit.capacity for limit in snapshot.limits}
    impossible = any(0 < (capacities.get(key) or 0) < slots for key, slots in row.wants.items())
    return {
        **_claim_json(row),
        "state": "impossible" if impossible else row.state.value,
        "enqueued_at": rfc3339(row.enqueued_at),
        "position": 1 + len(ahead),
        "ahead": [other.claim.claim_id for other in ahead[:HOLDERS_SHOWN]],
        "blocked_by": [
            {
                "limit": reason.limit,
                "capacity": reason.capacity,
                "held": reason.held,
                "holders": [holder.claim.claim_id for holder in _holding(snapshot, reason.limit)],
            }
            for reason in _barring(snapshot, row, ahead)
        ],
    }


def session_json(row: SessionRow) -> dict[str, Any]:
    """A session, as in `status`."""
    session = row.session
    return {
        "session_id": session.session_id,
        "host": session.host,
        "deployment": session.deployment,
        "pid": session.pid,
        "hostname": session.hostname,
        "expires_at": rfc3339(row.expires_at),
    }


def status(snapshot: Snapshot, concurrency: Concurrency) -> dict[str, Any]:
    """Everything live, as `penstock status --json` prints it."""
    queue = waiters(snapshot)
    return {
        "limits": all_limits(snapshot.limits, concurrency),
        "leases": [lease_json(row) for row in leases(snapshot)],
        "waiters": [waiter_json(snapshot, queue, row) for row in queue],
        "sessions": [session_json(row) for row in snapshot.sessions],
    }
