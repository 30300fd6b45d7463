"""Bringing a limit's slot rows in line with its capacity. Callers hold the grant lock."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, delete, exists, func, insert, or_, select, true, update

from penstock.rules import Source
from penstock.store import tables as t
from penstock.store.dialects import Dialect
from penstock.store.digests import digest


def settle(connection: Connection, dialect: Dialect, key: str, capacity: int | None, source: Source, now: int) -> None:
    """Create the limit, or change its capacity; holders keep what they hold, the excess drains.

    The limit's row is locked first, which holds off those who would add rows to an unlimited one, then all its slots
    in order; they are looked at in a statement after the locks.
    """
    new = {"digest": digest(key), "key": key, "capacity": None, "source": source.value, "draining": False}
    dialect.insert_if_absent(connection, t.limit, {**new, "settled_at": now})
    limit_id = connection.execute(
        select(t.limit.c.id).where(t.limit.c.digest == digest(key)).with_for_update()
    ).scalar_one()
    _fit(connection, limit_id, capacity)
    values = {"capacity": capacity, "source": source.value, "settled_at": now}
    connection.execute(update(t.limit).where(t.limit.c.id == limit_id).values(values))


def drained(connection: Connection) -> Sequence[t.StoredRow]:
    """Limits whose excess has drained: (id, capacity)."""
    held = (
        select(func.count()).where(t.slot.c.limit_id == t.limit.c.id, t.slot.c.claim_id.is_not(None)).scalar_subquery()
    )
    return connection.execute(
        select(t.limit.c.id, t.limit.c.capacity).where(t.DRAINING, held <= t.limit.c.capacity)
    ).all()


def settle_drained(connection: Connection) -> None:
    """Open limits again whose holders are no more than the capacity."""
    for row in drained(connection):
        refit(connection, row.id)


def refit(connection: Connection, limit_id: int) -> None:
    """Bring the slots in line with the capacity that the limit has."""
    capacity = connection.scalar(select(t.limit.c.capacity).where(t.limit.c.id == limit_id).with_for_update())
    _fit(connection, limit_id, capacity)


def idle(connection: Connection, before: int) -> list[int]:
    """Limits made on first sight in which nothing is held or waits and nothing has been granted since `before` (µs).

    An epoch is the id of a grant's history row: it says when a slot was last taken.
    """
    oldest = connection.scalar(select(func.min(t.history.c.id)).where(t.history.c.at >= before))
    newest_used = select(func.max(t.slot.c.epoch)).where(t.slot.c.limit_id == t.limit.c.id).scalar_subquery()
    unused = or_(newest_used.is_(None), newest_used < oldest) if oldest is not None else true()
    return list(
        connection.scalars(
            select(t.limit.c.id)
            .where(t.limit.c.settled_at < before, _made_on_sight(), unused, ~_in_use())
            .order_by(t.limit.c.id)
        )
    )


def _made_on_sight() -> ColumnElement[bool]:
    """Whether a claim brought the limit into being; what the configuration names by itself stays, and is shown."""
    key, unnamed = t.limit.c.key, t.limit.c.source.in_([Source.DEFAULT.value, Source.NONE.value])
    return or_(unnamed, *(key.like(instances) for instances in ("run_ops:%", "run_op_tag:%", "run_tag:%=*:%")))


def _in_use() -> ColumnElement[bool]:
    held = exists().where(t.slot.c.limit_id == t.limit.c.id, t.slot.c.claim_id.is_not(None))
    return or_(held, exists().where(t.waiter.c.limit_id == t.limit.c.id))


def collect(connection: Connection, limit_id: int) -> bool:
    """Drop an idle limit; False if it came into use meanwhile. Whoever names it next makes it anew.

    Its row is locked first: who enqueues takes a share lock on it, through the foreign key. What it holds is looked at
    in a new statement, after the lock.
    """
    connection.execute(select(t.limit.c.id).where(t.limit.c.id == limit_id).with_for_update())
    connection.execute(select(t.slot.c.n).where(t.slot.c.limit_id == limit_id).order_by(t.slot.c.n).with_for_update())
    if connection.execute(select(t.limit.c.id).where(t.limit.c.id == limit_id, ~_in_use())).first() is None:
        return False
    connection.execute(delete(t.slot).where(t.slot.c.limit_id == limit_id))
    connection.execute(delete(t.limit).where(t.limit.c.id == limit_id))
    return True


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
