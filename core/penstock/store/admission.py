"""How a claim is admitted: the attempt, the place in the queue, and the grants to those who wait.

The claim row is the guard. Whoever changes what a claim holds locks its row first, then slots in the order of (limit,
n); a statement that cannot have a slot's lock at once passes the slot over, so nothing here waits for a holder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from penstock.claim import ClaimKind
from penstock.decision import HeldSlot
from penstock.rules import Demand
from penstock.store import tables as t
from penstock.store.asking import Ask, joins, ownership, rank
from penstock.store.contract import ClaimState, Event, Owner
from penstock.store.dialects import Dialect
from penstock.store.digests import digest
from penstock.store.reading import label_of


class Unsettled(Exception):
    """Limits that do not exist yet, or not with the capacity that the configuration gives them now."""

    def __init__(self, demands: Sequence[Demand]) -> None:
        super().__init__()
        self.demands = demands


def limit_ids(connection: Connection, demands: Sequence[Demand]) -> dict[str, int]:
    """Limit key → id of all that is demanded. Raises Unsettled with those that are absent or have another capacity."""
    if not demands:
        return {}
    rows = connection.execute(
        select(t.limit.c.key, t.limit.c.id, t.limit.c.capacity).where(
            t.limit.c.digest.in_([digest(demand.key) for demand in demands])
        )
    )
    found = {row.key: row for row in rows}
    if wrong := [d for d in demands if d.key not in found or found[d.key].capacity != d.capacity]:
        raise Unsettled(wrong)
    return {demand.key: found[demand.key].id for demand in demands}


def write_claim(connection: Connection, dialect: Dialect, ask: Ask, now: int, *, observed: bool) -> bool:
    """Write a held claim unless its id was used before or its holder has a live one. False if so."""
    values = {
        **ask.columns(),
        "rank": rank(now, ask.claim.priority),
        "state": ClaimState.HELD.value,
        "enqueued_at": now,
        "eligible_at": now,
        "granted_at": now,
        "acknowledged_at": now,
        "observed": observed,
        **owned(ask.claim.kind, ask.owner, now, held=True),
    }
    return dialect.insert_if_absent(connection, t.claim, values)


def owned(kind: ClaimKind, owner: Owner, now: int, *, held: bool) -> dict[str, Any]:
    """The columns that say who keeps the claim alive, and until when without a process."""
    keeper = ownership(kind, owner, held=held)
    deadline = None if keeper.deadline_after is None else now + keeper.deadline_after
    return {"liveness": keeper.liveness.value, "session_id": keeper.session_id, "deadline": deadline}


def join_run(connection: Connection, dialect: Dialect, kind: ClaimKind, claim_id: str, owner: Owner) -> None:
    """Make the session a member of a run's claim; a probed run needs none."""
    if joins(kind, owner):
        dialect.insert_if_absent(connection, t.member, {"claim_id": claim_id, "session_id": owner.session_id})


def free_numbers(connection: Connection, limit_id: int, count: int, *, skip_locked: bool) -> list[int]:
    """Free slots of a limit, locked, at most `count`. `skip_locked=False` waits for those who hold a row's lock."""
    s = t.slot.c
    statement = (
        select(s.n)
        .where(s.limit_id == limit_id, s.claim_id.is_(None), s.usable)
        .order_by(s.n)
        .limit(count)
        .with_for_update(skip_locked=skip_locked)
    )
    return list(connection.scalars(statement))


def still_unlimited(connection: Connection, limit_id: int) -> bool:
    """Whether the limit has no capacity, and will have none before this transaction ends."""
    still = select(t.limit.c.id).where(t.limit.c.id == limit_id, t.limit.c.capacity.is_(None))
    return connection.execute(still.with_for_update(read=True, key_share=True)).first() is not None


def take(connection: Connection, claim_id: str, limit_id: int, n: int, epoch: int) -> None:
    """Mark a free slot, whose row is locked."""
    here = (t.slot.c.limit_id == limit_id, t.slot.c.n == n)
    connection.execute(update(t.slot).where(*here).values(claim_id=claim_id, epoch=epoch))


def take_above(connection: Connection, claim_id: str, limit_id: int, n: int, epoch: int) -> None:
    """Make a slot above the capacity, or of a limit without one; it goes when it is released."""
    row = {"limit_id": limit_id, "n": n, "claim_id": claim_id, "epoch": epoch, "usable": False}
    connection.execute(insert(t.slot), row)


def free_slots(connection: Connection, claim_id: str) -> None:
    """Free what a claim holds, in order, as those who resize a limit; closed slots go. Its row must be locked."""
    s = t.slot.c
    mine = s.claim_id == claim_id
    connection.execute(select(s.n).where(mine).order_by(s.limit_id, s.n).with_for_update()).all()
    connection.execute(update(t.slot).where(mine, s.usable).values(claim_id=None))
    connection.execute(delete(t.slot).where(mine))


def claim_row(connection: Connection, claim_id: str, *, lock: bool = False) -> t.StoredRow:
    """The claim's row, or None. `lock`: for the rest of the transaction."""
    statement = select(t.claim).where(t.claim.c.id == claim_id)
    return connection.execute(statement.with_for_update() if lock else statement).first()


def tombstone(claim_id: str, now: int) -> dict[str, Any]:
    """The row of a claim that ended before it was ever seen here."""
    nothing = {"host": "", "deployment": "", "pools": {}, "tags": {}, "demands": {}}
    plain = {"kind": ClaimKind.OP.value, "attempt": 1, "in_run": False, "priority": 0, "version": 0, "rank": now}
    times = {"enqueued_at": now, "eligible_at": now, "ended_at": now}
    ended = {"state": ClaimState.ENDED.value, "liveness": "session", "outcome": Event.WITHDRAWN.value}
    return {"id": claim_id, **nothing, **plain, **times, **ended}


def slots_of(connection: Connection, claim_id: str) -> tuple[HeldSlot, ...]:
    """What a claim holds."""
    rows = connection.execute(
        select(t.limit.c.key, t.slot.c.n, t.slot.c.epoch)
        .join(t.limit, t.limit.c.id == t.slot.c.limit_id)
        .where(t.slot.c.claim_id == claim_id)
        .order_by(t.limit.c.key, t.slot.c.n)
    )
    return tuple(HeldSlot(row.key, row.n, row.epoch) for row in rows)


def renew_epochs(connection: Connection, row: t.StoredRow, now: int) -> None:
    """A new process takes the claim over: the old one's epochs are stale from now on."""
    epoch = record(connection, Event.ADOPTED, row, now)
    connection.execute(update(t.slot).where(t.slot.c.claim_id == row.id).values(epoch=epoch))


def queue(connection: Connection, row: t.StoredRow, wanted: Mapping[str, int], ids: Mapping[str, int]) -> None:
    """Put a claim into the queue of every limit that it wants, instead of what it was queued for before."""
    connection.execute(delete(t.waiter).where(t.waiter.c.claim_id == row.id))
    common = {"rank": row.rank, "claim_id": row.id, "enqueued_at": row.enqueued_at}
    if wanted:
        rows = [{"limit_id": ids[key], "slots": slots, **common} for key, slots in sorted(wanted.items())]
        connection.execute(insert(t.waiter), rows)


def end_claim(connection: Connection, row: t.StoredRow, event: Event, now: int, detail: str | None = None) -> None:
    """End a claim whose row is locked: its slots are free, its place is gone, its id is a tombstone.

    A run takes its late pools with it.
    """
    if row.kind == ClaimKind.RUN.value:
        late = (t.claim.c.parent_id == row.id) & (t.claim.c.kind == ClaimKind.RUN_POOL.value)
        alive = late & (t.claim.c.state != ClaimState.ENDED.value)
        for child in connection.execute(select(t.claim).where(alive).order_by(t.claim.c.id).with_for_update()).all():
            end_claim(connection, child, event, now, detail)
    if row.state in (ClaimState.GRANTED.value, ClaimState.HELD.value):
        free_slots(connection, row.id)
    else:
        connection.execute(delete(t.waiter).where(t.waiter.c.claim_id == row.id))
    if row.kind != ClaimKind.OP.value:
        connection.execute(delete(t.member).where(t.member.c.claim_id == row.id))
    connection.execute(
        update(t.claim)
        .where(t.claim.c.id == row.id)
        .values(
            state=ClaimState.ENDED.value,
            live_holder=None,
            session_id=None,
            deadline=None,
            ended_at=now,
            outcome=event.value,
        )
    )
    held = now - row.granted_at if row.granted_at is not None else None
    record(connection, event, row, now, held=held, detail=detail)


def record(
    connection: Connection,
    event: Event,
    row: t.StoredRow,
    now: int,
    *,
    waited: int | None = None,
    held: int | None = None,
    detail: str | None = None,
) -> int:
    """Write one event of a claim into the history, in the transaction that made it happen. Returns its id, an epoch."""
    event_row = event_of(event, row, now) | {"waited": waited, "held": held, "detail": detail}
    (event_id,) = connection.execute(insert(t.history).values(event_row)).inserted_primary_key or (0,)
    return int(event_id)


def event_of(event: Event, row: t.StoredRow, now: int) -> dict[str, Any]:
    """The columns of the history that come from a claim's row."""
    return {
        "at": now,
        "event": event.value,
        "claim_id": row.id,
        "host": row.host,
        "deployment": row.deployment,
        "label": label_of(row.host, row.deployment, row.run_id, row.op_id, row.name),
        "slots": row.demands,
    }
