"""Reservations: how wide and many-pool claims do not starve. Pure arithmetic, nothing is marked anywhere.

A waiter is *aged* after 300 s. The first aged waiter that only pools bar, and that could fit, reserves all its pools
for 60 s of every 120 s; a pool has one reserver. That idles free slots of these pools for a bounded time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from penstock.rules import LimitKind, limit_kind
from penstock.store.asking import AGED

RESERVED = 60_000_000
PERIOD = 120_000_000


@dataclass(frozen=True, slots=True)
class Waiter:
    """A claim that waits, or a newcomer; times in µs. `around`: limits held by the lease under which it is made."""

    claim_id: str
    enqueued_at: int
    wants: Mapping[str, int]
    around: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Room:
    """A limit's capacity (None: unlimited) and its free slots."""

    capacity: int | None
    free: int


Reservations = Mapping[str, Waiter]
"""Limit key → who reserves it now."""


def reservations(waiters: Iterable[Waiter], rooms: Mapping[str, Room], now: int) -> dict[str, Waiter]:
    """Who reserves which pools now. `waiters`: those that can be granted at all (neither parked nor dead)."""
    first: dict[str, Waiter] = {}
    for waiter in sorted(waiters, key=lambda waiter: (waiter.enqueued_at, waiter.claim_id)):
        pools = [key for key in waiter.wants if limit_kind(key) is LimitKind.POOL]
        if _aged(waiter, now) and _only_pools_bar(waiter, rooms) and first.keys().isdisjoint(pools):
            first |= dict.fromkeys(pools, waiter)
    return {key: waiter for key, waiter in first.items() if (now - waiter.enqueued_at - AGED) % PERIOD < RESERVED}


def fits(waiter: Waiter, rooms: Mapping[str, Room], reserved: Reservations, now: int) -> bool:
    """Whether there is room for it in every limit, beyond what is reserved against it."""
    for key, slots in waiter.wants.items():
        room = rooms[key]
        if room.capacity is None:
            continue
        reserver = reserved.get(key)
        kept = reserver.wants[key] if reserver is not None and _binds(reserver, waiter, now) else 0
        if room.free - kept < slots:
            return False
    return True


def _aged(waiter: Waiter, now: int) -> bool:
    return waiter.enqueued_at < now - AGED


def _only_pools_bar(waiter: Waiter, rooms: Mapping[str, Room]) -> bool:
    barred = False
    for key, slots in waiter.wants.items():
        room = rooms[key]
        if room.capacity is None or room.free >= slots:
            continue
        if limit_kind(key) is not LimitKind.POOL or room.capacity < slots:
            return False
        barred = True
    return barred


def _binds(reserver: Waiter, waiter: Waiter, now: int) -> bool:
    """The order for reservations: aged waiters by enqueue time, then the rest, among them every newcomer."""
    if waiter.claim_id == reserver.claim_id or not reserver.wants.keys().isdisjoint(waiter.around):
        return False
    earlier = (waiter.enqueued_at, waiter.claim_id) < (reserver.enqueued_at, reserver.claim_id)
    return not (_aged(waiter, now) and earlier)
