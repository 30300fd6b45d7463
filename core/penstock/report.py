"""What people and scripts see of a store: the JSON of the command line, and the reasons for a wait. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence, Set
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from penstock.claim import Claim, ClaimKind
from penstock.config import Concurrency
from penstock.decision import Reason
from penstock.queue import SHOWN, Queue, leases
from penstock.rules import LimitKind, configured_keys, limit_kind, own_pools_of, pool_key, resolve_limit
from penstock.store.contract import ClaimRow, Event, HistoryRow, LimitRow, SessionRow, Snapshot

if TYPE_CHECKING:
    from penstock.rules import Demand

MOST_LISTED = 10


def rfc3339(microseconds: int | None) -> str | None:
    """A store's time as RFC 3339 in UTC."""
    if microseconds is None:
        return None
    seconds, rest = divmod(microseconds, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest).isoformat().replace("+00:00", "Z")


def lasting(seconds: float) -> str:
    """A time span for people: 850 ms, 12 s, 4 min 12 s, 2 h 3 min, 3 d 4 h."""
    if seconds < 1:
        return f"{max(0, round(seconds * 1000))} ms"
    whole = round(seconds)
    for unit, name, rest, rest_name in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            more = whole % unit // rest
            return f"{whole // unit} {name}" + (f" {more} {rest_name}" if more else "")
    return f"{whole} s"


def listed(texts: Sequence[str]) -> str:
    """The first ten in one line, and how many more there are."""
    more = len(texts) - MOST_LISTED
    return ", ".join(texts[:MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


def named(claim: Claim) -> str:
    """A claim's label, with its id where the label alone would name many."""
    return claim.label if claim.run_id or claim.op_id else f"{claim.label} {claim.claim_id}"


def describe(reasons: Sequence[Reason]) -> str:
    """The reasons in one line."""
    return "; ".join(map(str, reasons)) or "slots that have just become free"


def impossible_reasons(demands: Sequence[Demand]) -> tuple[Reason, ...]:
    """Why a claim could never be admitted."""
    return tuple(Reason(d.key, d.slots, d.capacity, 0) for d in demands if d.impossible)


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


def claim_json(row: ClaimRow) -> dict[str, Any]:
    """What a lease and a waiter have in common."""
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
    """A lease, as in `status`; `observed`: it would have had to wait, were its installation to enforce.

    `state` is `granted` until its holder has come for it, then `held`.
    """
    slots = [{"limit": held.limit, "slot": held.slot, "epoch": held.epoch} for held in row.slots]
    granted_at = rfc3339(row.granted_at)
    return {
        **claim_json(row),
        "state": row.state.value,
        "granted_at": granted_at,
        "slots": slots,
        "observed": row.observed,
    }


def waiter_json(queue: Queue, row: ClaimRow) -> dict[str, Any]:
    """A waiter, as in `status`, with its place and what bars it."""
    ahead, limits = queue.ahead(row), queue.limits
    capacities = {key: limits[key].capacity or 0 for key in row.wants if key in limits}
    impossible = any(0 < capacity < row.wants[key] for key, capacity in capacities.items())
    return {
        **claim_json(row),
        "state": "impossible" if impossible else row.state.value,
        "enqueued_at": rfc3339(row.enqueued_at),
        "position": 1 + ahead.count,
        "ahead": [other.claim.claim_id for other in ahead.first],
        "blocked_by": [
            {
                "limit": reason.limit,
                "capacity": reason.capacity,
                "held": reason.held,
                "holders": [holder.claim.claim_id for holder in queue.holders(reason.limit)[:SHOWN]],
            }
            for reason in queue.barring(row)
        ],
    }


def op_pools(snapshot: Snapshot, history: Sequence[HistoryRow]) -> list[dict[str, Any]]:
    """Op → pools (with slots), of the ops that were granted before and of those that hold or wait now.

    An op is the same one in each of its runs: the runs under limits are left out of the names.
    """
    used = [
        (row.host or "", row.deployment or "", row.label or "", row.slots)
        for row in history
        if row.event is Event.GRANTED
    ]
    runs = {label for _, _, label, slots in used if LimitKind.RUNS in slots}
    runs |= {row.claim.label for row in snapshot.claims if row.claim.kind is ClaimKind.RUN}
    used = [row for row in used if row[2] not in runs]
    used += [
        (row.claim.host, row.claim.deployment, row.claim.label, {pool_key(n): s for n, s in row.claim.pools.items()})
        for row in snapshot.claims
        if row.claim.kind is ClaimKind.OP
    ]
    found: dict[tuple[str, str, str], dict[str, int | None]] = {}
    for host, deployment, label, slots in used:
        if pools := {key.removeprefix("pool:"): n for key, n in slots.items() if limit_kind(key) is LimitKind.POOL}:
            own = own_pools_of(deployment)
            step = next((name.removeprefix(own) for name in pools if name.startswith(own)), None)
            found[host, deployment, step or _without_run(label, runs, f"{host}/{deployment}")] = pools
    return [
        {"host": host, "deployment": deployment, "op": op, "pools": dict(sorted(pools.items()))}
        for (host, deployment, op), pools in sorted(found.items())
    ]


def _without_run(label: str, runs: Set[str], installation: str) -> str:
    """What is left of an op's label without its run, where that is known, and without its installation."""
    words = label.split(" ")
    run = next((head for end in range(len(words), 1, -1) if (head := " ".join(words[:end])) in runs), installation)
    return label.removeprefix(run).strip()


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
    queue = Queue(snapshot)
    return {
        "limits": all_limits(snapshot.limits, concurrency),
        "leases": [lease_json(row) for row in leases(snapshot)],
        "waiters": [waiter_json(queue, row) for row in queue.waiters],
        "sessions": [session_json(row) for row in snapshot.sessions],
    }
