"""Why a claim waits, for whom, since when and what is ahead of it; or what it holds and until when. Pure functions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from penstock.circles import Waits
from penstock.claim import ClaimKind
from penstock.queue import SHOWN, Queue
from penstock.report import claim_json, lasting, lease_json, rfc3339, waiter_json
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
    explained = _Explained(snapshot, version)
    matches = [explained.waiter(row) if row.state in WAITS else explained.holder(row) for row in rows[:most]]
    waiting = sum(row.state in WAITS for row in rows)
    return {"id": identifier, "kind": kind, "count": len(rows), "waiting": waiting, "matches": matches}


def reservations_now(snapshot: Snapshot, version: int) -> Reservations:
    """Who reserves which pools at the time of the snapshot."""
    rooms = _rooms(snapshot)
    able = [
        _asking(row)
        for row in snapshot.claims
        if row.state is ClaimState.WAITING and row.version == version and row.eligible_at <= snapshot.now
    ]
    return reservations([one for one in able if rooms.keys() >= one.wants.keys()], rooms, snapshot.now)


class _Explained:
    """What every match is explained by, read off the snapshot once."""

    def __init__(self, snapshot: Snapshot, version: int) -> None:
        self._snapshot, self._version = snapshot, version
        self._queue, self._waits = Queue(snapshot), Waits(snapshot)
        self._reserved, self._rooms = reservations_now(snapshot, version), _rooms(snapshot)
        self._rows = {row.claim.claim_id: row for row in snapshot.claims}
        self._alive = {one.session.session_id: one.session for one in snapshot.sessions}

    def waiter(self, row: ClaimRow) -> dict[str, Any]:
        """Why it waits."""
        queue, now = self._queue, self._snapshot.now
        blocked_by = []
        for reason in queue.barring(row):
            holders = queue.holders(reason.limit)
            blocked_by.append(
                {
                    "limit": reason.limit,
                    "capacity": reason.capacity,
                    "held": reason.held,
                    "needed": reason.needed,
                    "waiting_ahead": reason.waiting_ahead,
                    "holders": [holder.claim.claim_id for holder in holders[:SHOWN]],
                    "held_by": [self._held(holder, reason.limit) for holder in holders[:SHOWN]],
                    "holders_left_out": max(0, len(holders) - SHOWN),
                }
            )
        return {
            **waiter_json(queue, row),
            "waited_seconds": (now - row.enqueued_at) / 1_000_000,
            "rank": rfc3339(row.rank),
            "order": order(row.claim.priority),
            "wants": dict(row.wants),
            "blocked_by": blocked_by,
            "ahead_of_it": [_named(other) for other in queue.ahead(row).first],
            "reserved_by": self._reserved_against(row),
            "reserves": _reserved_for(row, self._reserved, now),
            "circle": [
                {"waiter": _named(link.waiter), "limit": link.limit, "holder": _named(link.holder)}
                for link in self._waits.circle(row.claim.claim_id)
            ],
            "notes": list(_notes(row, now, self._version)),
        }

    def holder(self, row: ClaimRow) -> dict[str, Any]:
        """What it holds."""
        told = lease_json(row) if row.state is not ClaimState.SKIPPED else claim_json(row)
        return {
            **told,
            "state": row.state.value,
            "held_seconds": row.held_seconds(self._snapshot.now),
            "sessions": self._sessions(row),
            "notes": list(_notes(row, self._snapshot.now, row.version)),
        }

    def _held(self, row: ClaimRow, key: str) -> dict[str, Any]:
        claim = row.claim
        return {
            **_named(row),
            "host": claim.host,
            "deployment": claim.deployment,
            "run_id": claim.run_id,
            "op_id": claim.op_id,
            "slots": sum(held.limit == key for held in row.slots),
            "held_seconds": row.held_seconds(self._snapshot.now),
            "expires_at": rfc3339(row.expires_at),
            "sessions": self._sessions(row),
        }

    def _sessions(self, row: ClaimRow) -> list[dict[str, Any]]:
        known = (self._alive[session_id] for session_id in row.session_ids if session_id in self._alive)
        return [{"hostname": session.hostname, "pid": session.pid} for session in known]

    def _reserved_against(self, row: ClaimRow) -> list[dict[str, Any]]:
        """The free slots that it may not take since another waiter reserves them."""
        reserved, rooms, now = self._reserved, self._rooms, self._snapshot.now
        parent = self._rows.get(row.claim.parent_id or "")
        around = frozenset(held.limit for held in parent.slots) if parent is not None else frozenset[str]()
        asking, against = replace(_asking(row), around=around), []
        for key, slots in sorted(row.wants.items()):
            one = replace(asking, wants={key: slots})
            if key in reserved and fits(one, rooms, {}, now) and not fits(one, rooms, reserved, now):
                by = reserved[key]
                until = rfc3339(_reserved_until(by, now))
                against.append({"limit": key, "by": _named(self._rows[by.claim_id]), "until": until})
        return against


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


def _notes(row: ClaimRow, now: int, version: int) -> list[str]:
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
        case ClaimState.WAITING if row.eligible_at > now:
            notes.append(f"it asked not to be granted before {rfc3339(row.eligible_at)}")
        case _:
            pass
    if row.version != version:
        notes.append(
            f"the configuration is version {version} by now: its process must speak up before it can be granted"
        )
    if row.expires_at is not None and row.expires_at < now:
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


def _reserved_for(row: ClaimRow, reserved: Reservations, now: int) -> list[dict[str, Any]]:
    mine = sorted(key for key, by in reserved.items() if by.claim_id == row.claim.claim_id)
    return [{"limit": key, "until": rfc3339(_reserved_until(reserved[key], now))} for key in mine]


def _reserved_until(by: Waiter, now: int) -> int:
    return now - (now - by.enqueued_at - AGED) % PERIOD + RESERVED
