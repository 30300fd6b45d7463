"""Why a claim waits, for whom, since when and what is ahead of it; or what it holds and until when. Pure functions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from penstock.circles import Waits
from penstock.claim import ClaimKind
from penstock.report import (
    HOLDERS_SHOWN,
    ahead_of,
    barring,
    claim_json,
    holding,
    lasting,
    lease_json,
    rfc3339,
    waiter_json,
    waiters,
)
from penstock.store.asking import AGED, boost
from penstock.store.contract import ClaimRow, ClaimState, Snapshot
from penstock.store.reservation import PERIOD, RESERVED, Reservations, Room, Waiter, fits, reservations

WAITS = (ClaimState.WAITING, ClaimState.PARKED)


def find(snapshot: Snapshot, identifier: str) -> tuple[str, list[ClaimRow]]:
    """What an id names, and all that it names: a claim, else a run (`[HOST/DEPLOYMENT/]RUN_ID`), else an op."""
    rows = snapshot.claims
    claims = [row for row in rows if row.claim.claim_id == identifier]
    if claims:
        return "claim", claims
    runs = [row for row in rows if row.claim.run_id is not None and identifier in (row.claim.run_id, run_name(row))]
    if runs:
        return "run", runs
    return "op", [row for row in rows if row.claim.op_id == identifier]


def run_name(row: ClaimRow) -> str:
    """A run as no other one is called: `HOST/DEPLOYMENT/RUN_ID`."""
    return "/".join(filter(None, (row.claim.host, row.claim.deployment, row.claim.run_id)))


def explain(snapshot: Snapshot, identifier: str, version: int, *, most: int | None = None) -> dict[str, Any]:
    """What an id names, with the reasons, as plain values: the JSON of `penstock explain`. Waiters come first.

    `matches` are all, or as many as `most`; `count` and `waiting` say how many there are.
    """
    kind, rows = find(snapshot, identifier)
    rows.sort(key=lambda row: row.state not in WAITS)
    queue, reserved, waits = waiters(snapshot), reservations_now(snapshot, version), Waits(snapshot)
    explained = [
        _waiter(snapshot, queue, row, reserved, waits, version) if row.state in WAITS else _holder(snapshot, row)
        for row in rows[:most]
    ]
    waiting = sum(row.state in WAITS for row in rows)
    return {"id": identifier, "kind": kind, "count": len(rows), "waiting": waiting, "matches": explained}


def reservations_now(snapshot: Snapshot, version: int) -> Reservations:
    """Who reserves which pools at the time of the snapshot."""
    rooms = _rooms(snapshot)
    able = [
        _asking(row)
        for row in snapshot.claims
        if row.state is ClaimState.WAITING and row.version == version and row.eligible_at <= snapshot.now
    ]
    return reservations([one for one in able if rooms.keys() >= one.wants.keys()], rooms, snapshot.now)


def _waiter(
    snapshot: Snapshot, queue: list[ClaimRow], row: ClaimRow, reserved: Reservations, waits: Waits, version: int
) -> dict[str, Any]:
    ahead = ahead_of(queue, row)
    blocked_by = []
    for reason in barring(snapshot, row, ahead):
        holders = holding(snapshot, reason.limit)
        blocked_by.append(
            {
                "limit": reason.limit,
                "capacity": reason.capacity,
                "held": reason.held,
                "needed": reason.needed,
                "waiting_ahead": reason.waiting_ahead,
                "holders": [holder.claim.claim_id for holder in holders[:HOLDERS_SHOWN]],
                "held_by": [_held(snapshot, holder, reason.limit) for holder in holders[:HOLDERS_SHOWN]],
                "holders_left_out": max(0, len(holders) - HOLDERS_SHOWN),
            }
        )
    return {
        **waiter_json(snapshot, queue, row),
        "waited_seconds": (snapshot.now - row.enqueued_at) / 1_000_000,
        "rank": rfc3339(row.rank),
        "order": order(row.claim.priority),
        "wants": dict(row.wants),
        "blocked_by": blocked_by,
        "ahead_of_it": [_named(other) for other in ahead[:HOLDERS_SHOWN]],
        "reserved_by": _reserved_against(snapshot, row, reserved),
        "reserves": _reserved_for(row, reserved, snapshot.now),
        "circle": [
            {"waiter": _named(link.waiter), "limit": link.limit, "holder": _named(link.holder)}
            for link in waits.circle(row.claim.claim_id)
        ],
        "notes": list(_notes(snapshot, row, version)),
    }


def _holder(snapshot: Snapshot, row: ClaimRow) -> dict[str, Any]:
    told = lease_json(row) if row.state is not ClaimState.SKIPPED else claim_json(row)
    held_seconds = row.held_seconds(snapshot.now)
    return {
        **told,
        "state": row.state.value,
        "held_seconds": held_seconds,
        "sessions": _sessions(snapshot, row),
        "notes": list(_notes(snapshot, row, row.version)),
    }


def order(priority: int) -> str:
    """In words what a priority does to a place in the queue."""
    if priority == 0:
        return "priority 0: in order of arrival"
    way = "earlier" if priority > 0 else "later"
    return f"priority {priority}: as if it had come {lasting(abs(boost(priority)) / 1_000_000)} {way}"


def _named(row: ClaimRow) -> dict[str, Any]:
    claim = row.claim
    return {
        "claim_id": claim.claim_id,
        "label": claim.label,
        "state": row.state.value,
        "since": rfc3339(row.granted_at if row.granted_at is not None else row.enqueued_at),
        "url": claim.url,
    }


def _held(snapshot: Snapshot, row: ClaimRow, key: str) -> dict[str, Any]:
    claim = row.claim
    return {
        **_named(row),
        "host": claim.host,
        "deployment": claim.deployment,
        "run_id": claim.run_id,
        "op_id": claim.op_id,
        "slots": sum(held.limit == key for held in row.slots),
        "held_seconds": row.held_seconds(snapshot.now),
        "expires_at": rfc3339(row.expires_at),
        "sessions": _sessions(snapshot, row),
    }


def _sessions(snapshot: Snapshot, row: ClaimRow) -> list[dict[str, Any]]:
    alive = {one.session.session_id: one.session for one in snapshot.sessions}
    known = (alive[session_id] for session_id in row.session_ids if session_id in alive)
    return [{"hostname": session.hostname, "pid": session.pid} for session in known]


def _notes(snapshot: Snapshot, row: ClaimRow, version: int) -> list[str]:
    """What is to be said of it besides the limits."""
    notes = []
    match row.state:
        case ClaimState.PARKED:
            notes.append(
                "it was granted, but nobody took the slots in time: it is passed over until its process speaks up, "
                "and keeps its place"
            )
        case ClaimState.GRANTED:
            notes.append("granted; its process has not taken the slots yet")
        case ClaimState.SKIPPED:
            notes.append(f"skipped: there was no room, and it asked not to wait; it stays so {_until(row)}")
        case ClaimState.WAITING if row.eligible_at > snapshot.now:
            notes.append(f"it asked not to be granted before {rfc3339(row.eligible_at)}")
        case _:
            pass
    if row.version != version:
        notes.append(
            f"the configuration is version {version} by now: its process must speak up before it can be granted"
        )
    if row.expires_at is not None and row.expires_at < snapshot.now:
        notes.append("nothing was heard of its process in time: the next sweep ends it (`penstock janitor --once`)")
    if row.claim.kind is ClaimKind.RUN_POOL:
        notes.append("a pool of run granularity: its run keeps it to its end")
    if row.probed:
        notes.append("it lives until its host says that the run is over")
    if row.observed:
        notes.append("admitted above the limit: its installation only observes")
    return notes


def _until(row: ClaimRow) -> str:
    return "to the end of its run" if row.expires_at is None else f"until {rfc3339(row.expires_at)}"


def _asking(row: ClaimRow) -> Waiter:
    return Waiter(row.claim.claim_id, row.enqueued_at, row.wants)


def _rooms(snapshot: Snapshot) -> dict[str, Room]:
    return {row.key: Room(row.capacity, max(0, (row.capacity or 0) - row.held)) for row in snapshot.limits}


def _reserved_against(snapshot: Snapshot, row: ClaimRow, reserved: Reservations) -> list[dict[str, Any]]:
    """The free slots that it may not take since another waiter reserves them."""
    if reserved.keys().isdisjoint(row.wants):
        return []
    rooms, labels = _rooms(snapshot), {other.claim.claim_id: _named(other) for other in snapshot.claims}
    parent = next((other for other in snapshot.claims if other.claim.claim_id == row.claim.parent_id), None)
    around = frozenset(held.limit for held in parent.slots) if parent is not None else frozenset[str]()
    asking, against = replace(_asking(row), around=around), []
    for key, slots in sorted(row.wants.items()):
        one = replace(asking, wants={key: slots})
        if key in reserved and fits(one, rooms, {}, snapshot.now) and not fits(one, rooms, reserved, snapshot.now):
            by = reserved[key]
            until = rfc3339(_reserved_until(by, snapshot.now))
            against.append({"limit": key, "by": labels[by.claim_id], "until": until})
    return against


def _reserved_for(row: ClaimRow, reserved: Reservations, now: int) -> list[dict[str, Any]]:
    mine = sorted(key for key, by in reserved.items() if by.claim_id == row.claim.claim_id)
    return [{"limit": key, "until": rfc3339(_reserved_until(reserved[key], now))} for key in mine]


def _reserved_until(by: Waiter, now: int) -> int:
    return now - (now - by.enqueued_at - AGED) % PERIOD + RESERVED
