"""The grant pass: who of those that wait is granted now, in order. The caller holds the grant lock.

A pass reads, for each limit that has both waiters and room, the first waiters that fit everywhere; it never reads a
whole queue.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from penstock.rules import LimitKind, limit_kind
from penstock.store.asking import AGED, HEARD_OF, OVERFLOW
from penstock.store.digests import digest
from penstock.store.reading import label_of
from penstock.store.reservation import Reservations, Room, Waiter, fits, reservations
from penstock.store.writing import Cursor

GRANTS_PER_PASS = 100
AGED_READ = 20
"""How many aged waiters of a pool are looked at to find its reserver."""

FREE = "(SELECT count(*) FROM penstock_slot s WHERE s.limit_id = {of} AND s.claim_id IS NULL AND s.usable)"
OPEN_LIMITS = f"""
WITH RECURSIVE {{queued}}
SELECT l.id, l.`key`, l.capacity, {FREE.format(of="l.id")} AS free, m.configuration_version, {{now}} AS at,
    (SELECT changed_at FROM penstock_configuration WHERE version = m.configuration_version) AS changed_at
FROM queued JOIN penstock_limit l ON l.id = queued.limit_id CROSS JOIN penstock_meta m
WHERE l.capacity IS NULL
    OR EXISTS (SELECT 1 FROM penstock_slot s WHERE s.limit_id = l.id AND s.claim_id IS NULL AND s.usable)
"""
CLAIM = "c.id, c.`rank`, c.enqueued_at, c.demands, c.parent_id, c.host, c.deployment, c.run_id, c.op_id, c.name"
FIRST_THAT_FIT = f"""
SELECT {CLAIM} FROM penstock_waiter w JOIN penstock_claim c ON c.id = w.claim_id
WHERE w.limit_id = :of_limit AND c.state = 'waiting' AND c.version = :version AND c.eligible_at <= :at
    AND NOT EXISTS (
        SELECT 1 FROM penstock_waiter o JOIN penstock_limit l ON l.id = o.limit_id
        WHERE o.claim_id = c.id AND l.capacity IS NOT NULL AND {FREE.format(of="o.limit_id")} < o.slots)
ORDER BY w.`rank`, w.claim_id LIMIT :most
"""
UNRESOLVED = """
SELECT w.limit_id, MIN(w.`rank`) FROM penstock_waiter w JOIN penstock_claim c ON c.id = w.claim_id
WHERE c.version <> :version AND w.limit_id IN ({ids}) GROUP BY w.limit_id
"""
STILL_WAITING = """
SELECT id FROM penstock_claim WHERE id IN ({ids}) AND state = 'waiting' AND version = :version{skip}
"""
LIMITS = f"SELECT l.`key`, l.id, l.capacity, {FREE.format(of='l.id')} FROM penstock_limit l WHERE l.digest IN ({{ids}})"
FREE_NUMBERS = """
SELECT n FROM penstock_slot WHERE limit_id = :of_limit AND claim_id IS NULL AND usable ORDER BY n LIMIT :most{skip}
"""
STILL_UNLIMITED = "SELECT id FROM penstock_limit WHERE id = :of_limit AND capacity IS NULL{share}"
AGED_WAITERS = """
SELECT claim_id FROM penstock_waiter WHERE limit_id = :of_limit AND enqueued_at < :before
ORDER BY enqueued_at LIMIT :most
"""
ABLE = f"""
SELECT {CLAIM} FROM penstock_claim c
WHERE c.id IN ({{ids}}) AND c.state = 'waiting' AND c.version = :version AND c.eligible_at <= :at
"""
HELD_BY = """
SELECT s.claim_id, l.`key` FROM penstock_slot s JOIN penstock_limit l ON l.id = s.limit_id WHERE s.claim_id IN ({ids})
"""
TELL = """
INSERT INTO penstock_history (at, event, claim_id, host, deployment, label, slots, waited)
VALUES (:at, 'granted', :claim_id, :host, :deployment, :label, :slots, :waited)
"""
MARK = "UPDATE penstock_slot SET claim_id = :claim_id, epoch = :epoch WHERE limit_id = :of_limit AND n = :n"
OVER = """
INSERT INTO penstock_slot (limit_id, n, claim_id, epoch, usable) VALUES (:of_limit, :n, :claim_id, :epoch, :usable)
"""
GRANT = "UPDATE penstock_claim SET state = 'granted', granted_at = :at WHERE id IN ({ids})"
DEQUEUE = "DELETE FROM penstock_waiter WHERE claim_id IN ({ids})"


@dataclass(slots=True)
class Limit:
    """A limit in a pass: its free slots as read, and those of them that this pass has locked and not given yet."""

    limit_id: int
    capacity: int | None
    free: int
    locked: list[int] = field(default_factory=list)
    contested: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """A waiter that fits everywhere by a plain read."""

    claim_id: str
    rank: int
    enqueued_at: int
    wants: Mapping[str, int]
    parent_id: str | None
    host: str
    deployment: str
    label: str

    @classmethod
    def of(cls, row: Sequence[Any]) -> Candidate:
        """From a row of `CLAIM`."""
        claim_id, rank, enqueued_at, demands, parent_id, host, deployment, run_id, op_id, name = row
        wants = json.loads(demands) if isinstance(demands, str) else demands
        label = label_of(host, deployment, run_id, op_id, name)
        return cls(claim_id, rank, enqueued_at, wants, parent_id, host, deployment, label)


@dataclass(frozen=True, slots=True)
class Batch:
    """Who was granted; `contested`: in these limits rows or slots were under way in somebody else's hands, look again.

    `weighed`: everybody who fitted by a plain read, granted or not.
    """

    granted: list[str]
    contested: frozenset[str] = frozenset()
    weighed: frozenset[str] = frozenset()


def grant(cursor: Cursor, shift: int) -> Batch:
    """Grant one batch, in order; the grant lock was taken in an earlier statement."""
    limits, version, at, fresh = _open_limits(cursor, shift)
    found = _that_fit(cursor, limits, version, at)
    if not found:
        return Batch([])
    reserved = reserved_now(cursor, limits, at, version)
    if reserved:  # it may bar those who come first, and not those behind them
        found |= _that_fit(cursor, limits, version, at, past_reservations=True)
    candidates = _first_to_go(cursor, limits, found.values(), reserved, version, at, fresh=fresh)
    still = cursor(STILL_WAITING, {"version": version}, [one.claim_id for one in candidates])
    own = {row[0] for row in still.fetchall()}
    _lock(cursor, limits, candidates, reserved)
    granted: list[tuple[Candidate, dict[str, list[int]]]] = []
    for one, waiter in zip(candidates, _waiters(cursor, candidates), strict=True):
        if any(limits[key].contested for key in one.wants):
            continue
        rooms = {key: Room(limits[key].capacity, len(limits[key].locked)) for key in one.wants}
        if one.claim_id in own and fits(waiter, rooms, reserved, at):
            granted.append((one, {key: _take(limits[key], slots) for key, slots in one.wants.items()}))
        else:
            # Its row or a slot is under way in somebody else's hands: those behind it wait until the next look, for
            # grants follow rank. Where slots are simply gone, or reserved, it bars nobody.
            for key, slots in one.wants.items():
                limit = limits[key]
                if one.claim_id not in own or len(limit.locked) < min(slots, limit.free):
                    limit.contested = True
    _write(cursor, granted, limits, at)
    contested = frozenset(key for key, limit in limits.items() if limit.contested)
    return Batch([one.claim_id for one, _ in granted], contested, frozenset(found))


def fit_by_now(cursor: Cursor, shift: int) -> set[str]:
    """The first who fit everywhere, by a plain read: after a pass, who came to fit while it was under way."""
    limits, version, at, _ = _open_limits(cursor, shift)
    return set(_that_fit(cursor, limits, version, at))


def _open_limits(cursor: Cursor, shift: int) -> tuple[dict[str, Limit], int, int, bool]:
    """Limits with waiters and room; the version in force, the time, and whether not all can have heard of it yet."""
    limits: dict[str, Limit] = {}
    version = at = 0
    changed_at: int | None = None
    for limit_id, key, capacity, free, *facts in cursor(OPEN_LIMITS, {"shift": shift}).fetchall():
        version, at, changed_at = facts
        limits[key] = Limit(limit_id, capacity, free)
    return limits, version, int(at), changed_at is not None and at < changed_at + HEARD_OF


def _that_fit(
    cursor: Cursor, limits: Mapping[str, Limit], version: int, at: int, *, past_reservations: bool = False
) -> dict[str, Candidate]:
    """Of each limit the first waiters that fit everywhere; where a limit has opened just now, the next look sees it."""
    found: dict[str, Candidate] = {}
    for limit in limits.values():
        deep = limit.capacity is None or past_reservations
        most = GRANTS_PER_PASS if deep else min(GRANTS_PER_PASS, limit.free)
        values = {"of_limit": limit.limit_id, "at": at, "version": version, "most": most}
        for one in map(Candidate.of, cursor(FIRST_THAT_FIT, values).fetchall()):
            if limits.keys() >= one.wants.keys():
                found[one.claim_id] = one
    return found


def _first_to_go(
    cursor: Cursor,
    limits: Mapping[str, Limit],
    found: Iterable[Candidate],
    reserved: Reservations,
    version: int,
    at: int,
    *,
    fresh: bool,
) -> list[Candidate]:
    """As many as one pass grants, in order, without those that others bar: else they would keep out all behind them.

    `fresh`: not everybody can have heard of the configuration yet, and nobody passes one who may not have.
    """
    first: list[Candidate] = []
    rooms = {key: Room(limit.capacity, limit.free) for key, limit in limits.items()}
    ordered = sorted(found, key=lambda one: (one.rank, one.claim_id))
    while ordered and len(first) < GRANTS_PER_PASS:
        some, ordered = ordered[:GRANTS_PER_PASS], ordered[GRANTS_PER_PASS:]
        if fresh:
            ahead = unresolved(cursor, {key: limits[key] for one in some for key in one.wants}, version)
            some = [one for one in some if all(one.rank < ahead.get(key, one.rank + 1) for key in one.wants)]
        if reserved:
            waiters = _waiters(cursor, some)
            some = [one for one, waiter in zip(some, waiters, strict=True) if fits(waiter, rooms, reserved, at)]
        first += some
    return first[:GRANTS_PER_PASS]


def _waiters(cursor: Cursor, candidates: Sequence[Candidate]) -> list[Waiter]:
    """As reservations look at them."""
    around = limits_around(cursor, [one.parent_id for one in candidates if one.parent_id is not None])
    return [Waiter(one.claim_id, one.enqueued_at, one.wants, around.get(one.parent_id or "", ())) for one in candidates]


def _lock(cursor: Cursor, limits: Mapping[str, Limit], candidates: Sequence[Candidate], reserved: Reservations) -> None:
    """Free slots of every limit that is wanted, as many as could be given or are kept; in the order of keys."""
    needed: dict[str, int] = defaultdict(int)
    for one in candidates:
        for key, slots in one.wants.items():
            needed[key] += slots
    for key in needed.keys() & reserved.keys():
        needed[key] += reserved[key].wants[key]
    # Limits without capacity first: theirs is the only lock that waits, so it is taken while no slot is locked.
    for key in sorted(needed.keys() & limits.keys(), key=lambda key: (limits[key].capacity is not None, key)):
        limit = limits[key]
        if limit.capacity is not None:
            numbers = cursor(FREE_NUMBERS, {"of_limit": limit.limit_id, "most": needed[key]})
            limit.locked = [row[0] for row in numbers.fetchall()]
        elif cursor(STILL_UNLIMITED, {"of_limit": limit.limit_id}).fetchone() is None:
            limit.contested = True


def read_limits(cursor: Cursor, keys: Iterable[str]) -> dict[str, Limit]:
    """Limits by key, with how many slots are free as a plain read sees it."""
    digests = [digest(key) for key in keys]
    rows = cursor(LIMITS, {}, digests).fetchall() if digests else []
    return {key: Limit(limit_id, capacity, free) for key, limit_id, capacity, free in rows}


def reserved_now(cursor: Cursor, limits: Mapping[str, Limit], now: int, version: int) -> Reservations:
    """Who reserves which of these pools now; usually nobody, and that costs one look at an index for each.

    Who comes first in a pool may reserve nothing because of another pool of its own: so those are read, too.
    """
    read, seen = dict(limits), set[str]()
    able: dict[str, Candidate] = {}
    while unseen := [key for key in read if key not in seen and limit_kind(key) is LimitKind.POOL]:
        seen.update(unseen)
        aged: set[str] = set()
        for key in unseen:
            if read[key].capacity is not None:
                values = {"of_limit": read[key].limit_id, "before": now - AGED, "most": AGED_READ}
                aged |= {row[0] for row in cursor(AGED_WAITERS, values).fetchall()}
        if new := sorted(aged - able.keys()):
            rows = cursor(ABLE, {"version": version, "at": now}, new).fetchall()
            able |= {row[0]: Candidate.of(row) for row in rows}
            read |= read_limits(cursor, {key for one in able.values() for key in one.wants} - read.keys())
    rooms = {key: Room(limit.capacity, limit.free) for key, limit in read.items()}
    waiters = [
        Waiter(one.claim_id, one.enqueued_at, one.wants) for one in able.values() if rooms.keys() >= one.wants.keys()
    ]
    return reservations(waiters, rooms, now)


def unresolved(cursor: Cursor, limits: Mapping[str, Limit], version: int) -> dict[str, int]:
    """Limit key → the lowest rank of a waiter there that has not been resolved under this configuration."""
    keys = {limit.limit_id: key for key, limit in limits.items()}
    rows = cursor(UNRESOLVED, {"version": version}, list(keys)).fetchall() if keys else []
    return {keys[limit_id]: int(rank) for limit_id, rank in rows}


def limits_around(cursor: Cursor, parent_ids: Sequence[str]) -> dict[str, set[str]]:
    """Claim id → the limits that it holds, for the leases under which others are made."""
    around: dict[str, set[str]] = defaultdict(set)
    if parent_ids:
        for claim_id, key in cursor(HELD_BY, {}, sorted(set(parent_ids))).fetchall():
            around[claim_id].add(key)
    return around


def _take(limit: Limit, slots: int) -> list[int]:
    taken, limit.locked = limit.locked[:slots], limit.locked[slots:]
    limit.free -= len(taken)
    return taken


def _write(
    cursor: Cursor, granted: Sequence[tuple[Candidate, Mapping[str, list[int]]]], limits: Mapping[str, Limit], at: int
) -> None:
    if not granted:
        return
    taken: list[Mapping[str, Any]] = []
    above: list[Mapping[str, Any]] = []
    for one, numbers in granted:
        epoch = _tell(cursor, one, at)
        for key, slots in one.wants.items():
            slot = {"claim_id": one.claim_id, "of_limit": limits[key].limit_id, "epoch": epoch}
            taken += [{**slot, "n": n} for n in numbers[key]]
            above += [{**slot, "n": n, "usable": False} for n in numbers_above(epoch, slots - len(numbers[key]))]
    cursor.many(MARK, taken)
    cursor.many(OVER, above)
    ids = [one.claim_id for one, _ in granted]
    cursor(GRANT, {"at": at}, ids)
    cursor(DEQUEUE, {}, ids)


def _tell(cursor: Cursor, one: Candidate, at: int) -> int:
    """Write the grant into the history; the id of that row is the epoch of its slots."""
    who = {"claim_id": one.claim_id, "host": one.host, "deployment": one.deployment, "label": one.label}
    values = {"at": at, **who, "slots": json.dumps(dict(one.wants)), "waited": at - one.enqueued_at}
    if cursor.syntax.returns_ids:
        return int(cursor(TELL + " RETURNING id", values).fetchone()[0])
    return int(cursor(TELL, values).lastrowid)


def numbers_above(epoch: int, count: int) -> list[int]:
    """Numbers for slots above a capacity, or of a limit without one: no two alike."""
    return [epoch + i * OVERFLOW for i in range(count)]
