"""Bringing a limit's slot rows in line with its capacity. Callers hold the grant lock."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, func, insert, select, update

from penstock.rules import Source
from penstock.store import tables as t
from penstock.store.admission import digest
from penstock.store.dialects import Dialect


def settle(connection: Connection, dialect: Dialect, key: str, capacity: int | None, source: Source) -> None:
    """Create the limit, or change its capacity; holders keep what they hold, the excess drains.

    The limit's row is locked first, which holds off those who would add rows to an unlimited one, then all its slots
    in order; they are looked at in a statement after the locks.
    """
    connection.execute(
        dialect.insert(t.limit).on_conflict_do_nothing(),
        {"digest": digest(key), "key": key, "capacity": None, "source": source.value, "draining": False},
    )
    limit_id = connection.execute(
        select(t.limit.c.id).where(t.limit.c.digest == digest(key)).with_for_update()
    ).scalar_one()
    _fit(connection, limit_id, capacity)
    connection.execute(update(t.limit).where(t.limit.c.id == limit_id).values(capacity=capacity, source=source.value))


def drained(connection: Connection) -> Sequence[t.StoredRow]:
    """Limits whose excess has drained: (id, capacity)."""
    held = (
        select(func.count()).where(t.slot.c.limit_id == t.limit.c.id, t.slot.c.claim_id.is_not(None)).scalar_subquery()
    )
    return connection.execute(
        select(t.limit.c.id, t.limit.c.capacity).where(t.limit.c.draining, held <= t.limit.c.capacity)
    ).all()


def settle_drained(connection: Connection, dialect: Dialect) -> None:
    """Open limits again whose holders are no more than the capacity."""
    for row in drained(connection):
        connection.execute(select(t.limit.c.id).where(t.limit.c.id == row.id).with_for_update())
        _fit(connection, row.id, row.capacity)


def _fit(connection: Connection, limit_id: int, capacity: int | None) -> None:
    s = t.slot.c
    mine = s.limit_id == limit_id
    connection.execute(select(s.n).where(mine).order_by(s.n).with_for_update()).all()
    rows = connection.execute(select(s.n, s.claim_id).where(mine).order_by(s.n)).all()
    held = [row.n for row in rows if row.claim_id is not None]
    free = [row.n for row in rows if row.claim_id is None]
    room = 0 if capacity is None else max(0, capacity - len(held))
    draining = capacity is not None and len(held) > capacity
    # While more is held than allowed every slot is closed: an excess tied to certain holders leaks on 2 → 1 → 2.
    connection.execute(update(t.slot).where(mine).values(usable=capacity is not None and not draining))
    if surplus := free[room:]:
        connection.execute(delete(t.slot).where(mine, s.n.in_(surplus), s.claim_id.is_(None)))
    if (missing := room - len(free)) > 0:
        taken = {row.n for row in rows}
        numbers = (n for n in range(1, missing + len(taken) + 1) if n not in taken)
        new = [
            {"limit_id": limit_id, "n": n, "claim_id": None, "epoch": 0, "usable": True}
            for n, _ in zip(numbers, range(missing), strict=False)
        ]
        connection.execute(insert(t.slot), new)
    connection.execute(update(t.limit).where(t.limit.c.id == limit_id).values(draining=draining))
