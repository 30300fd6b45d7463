"""The black-box checker of the soak: all hosts' holds against every limit, what was done, and what is left."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from intervals import most_held
from penstock.store import tables
from penstock.store.contract import Event, HistoryRow
from sqlalchemy import create_engine, func, select

from soak.load import Unit
from soak.witness import Hold

BINS = 300
"""Of the picture, over the whole time."""
HeldInterval = tuple[float, float, int]


@dataclass(frozen=True, kw_only=True)
class LimitSeen:
    """One limit over the soak. `held`: for each bin of the time the average, `most` the most, in slots."""

    key: str
    capacity: int
    leases: int
    most_held: int
    most_in_store: int
    used_percent: float
    waited: int
    median_wait_seconds: float
    longest_wait_seconds: float
    held: tuple[float, ...]
    most: tuple[int, ...]


def held_of(holds: Sequence[Hold], key: str) -> list[HeldInterval]:
    """What was held of a limit, by the holders' own clock: (begin, end, slots).

    An Airflow run holds from the begin of its first task to the end of its last, whatever is killed in between. The
    run of a flow or command holds for as long as its process.
    """
    found = [(hold.began, _end(hold), hold.slots[key]) for hold in holds if key in hold.slots]
    runs: dict[str, list[Hold]] = {}
    for hold in holds:
        if key in hold.run_slots:
            runs.setdefault(hold.run, []).append(hold)
    found += [
        (min(one.began for one in mine), max(_end(one) for one in mine), mine[0].run_slots[key])
        for mine in runs.values()
    ]
    return found


def _end(hold: Hold) -> float:
    assert hold.until is not None, f"it has not ended: {hold}"
    return hold.until


def violations(holds: Sequence[Hold], capacities: dict[str, int]) -> list[str]:
    """Limits that were passed, with who held them then; and steps of a run that were at work twice at the same time."""
    found = []
    for key, capacity in capacities.items():
        held = held_of(holds, key)
        for begin, _, _ in held:
            if sum(slots for b, e, slots in held if b <= begin < e) > capacity:
                beside = [
                    str(one)
                    for one in holds
                    if one.began <= begin < _end(one) and key in {**one.slots, **one.run_slots}
                ]
                found.append(f"{key}, more than {capacity} at {begin:.3f}: {beside}")
    steps: dict[tuple[str, str], list[Hold]] = {}
    for hold in holds:
        steps.setdefault((hold.run, hold.op), []).append(hold)
    for (run, op), mine in steps.items():
        if most_held((one.began, _end(one), 1) for one in mine) > 1:
            found.append(f"{run} {op} twice at the same time: {[str(one) for one in mine]}")
    return found


def undone(units: Sequence[Unit], holds: Sequence[Hold]) -> list[str]:
    """What did not end as it would have without faults, or has a step that never came to its end."""
    done = {(hold.run, hold.op) for hold in holds if hold.ended is not None}
    missing = {unit.run: [step for step in unit.steps if (unit.run, step) not in done] for unit in units}
    return [
        f"{unit.host} {unit.run}: {unit.state} {unit.notes}, not done: {missing[unit.run]}"
        for unit in units
        if not unit.is_well or missing[unit.run]
    ]


def left_over(url: str, seconds: float) -> list[str]:
    """What is wrong with the store when nobody works any more; it has so long to become right.

    No live claim, no slot held, no waiter, no member; each limit with as many usable slots as its capacity; no session
    that has long expired.
    """
    deadline = time.monotonic() + seconds
    while (found := _wrong(url)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def _wrong(url: str) -> list[str]:
    slot, limit, claim = tables.slot, tables.limit, tables.claim
    found = []
    database = create_engine(url)
    try:
        with database.connect() as connection:
            now = connection.scalar(select(func.extract("epoch", func.clock_timestamp()) * 1_000_000))
            counted = {
                "live claims": select(claim.c.name, claim.c.run_id, claim.c.op_id, claim.c.state).where(
                    claim.c.state != "ended"
                ),
                "slots held": select(limit.c.key, slot.c.n).join(limit).where(slot.c.claim_id.is_not(None)),
                "waiters": select(tables.waiter.c.claim_id),
                "members": select(tables.member.c.claim_id),
                "expired sessions": select(tables.session.c.host, tables.session.c.pid).where(
                    tables.session.c.expires_at < now - 15_000_000
                ),
                "limits that drain": select(limit.c.key).where(limit.c.draining),
                "limits with other slots than their capacity": select(
                    limit.c.key, limit.c.capacity, func.count(slot.c.n)
                )
                .outerjoin(slot, (slot.c.limit_id == limit.c.id) & slot.c.usable)
                .where(limit.c.capacity.is_not(None))
                .group_by(limit.c.id)
                .having(func.count(slot.c.n) != limit.c.capacity),
            }
            for what, statement in counted.items():
                if rows := connection.execute(statement).all():
                    found.append(f"{what}: {[tuple(row) for row in rows]}")
    finally:
        database.dispose()
    return found


def seen(
    holds: Sequence[Hold],
    history: Sequence[HistoryRow],
    capacities: dict[str, int],
    most_in_store: dict[str, int],
    began: float,
    fed_until: float,
    over: float,
) -> list[LimitSeen]:
    """Each limit as it was. The share of its capacity in use is that of the time until `fed_until`."""
    found = []
    for key, capacity in capacities.items():
        held = held_of(holds, key)
        waits = [row.wait_seconds or 0.0 for row in history if row.event is Event.GRANTED and key in row.slots]
        used = sum(slots * max(0.0, min(end, fed_until) - max(begin, began)) for begin, end, slots in held)
        average, most = _binned(held, began, over)
        found.append(
            LimitSeen(
                key=key,
                capacity=capacity,
                leases=len(waits),
                most_held=most_held(held),
                most_in_store=most_in_store.get(key, 0),
                used_percent=100 * used / (capacity * (fed_until - began)),
                waited=sum(wait > 0 for wait in waits),
                median_wait_seconds=statistics.median(waits) if waits else 0.0,
                longest_wait_seconds=max(waits, default=0.0),
                held=average,
                most=most,
            )
        )
    return found


def _binned(held: Sequence[HeldInterval], began: float, over: float) -> tuple[tuple[float, ...], tuple[int, ...]]:
    width = (over - began) / BINS
    average, most = [], []
    for number in range(BINS):
        low, high = began + number * width, began + (number + 1) * width
        inside = [(max(begin, low), min(end, high), slots) for begin, end, slots in held if begin < high and end > low]
        average.append(round(sum((end - begin) * slots for begin, end, slots in inside) / width, 2))
        most.append(most_held(inside))
    return tuple(average), tuple(most)
