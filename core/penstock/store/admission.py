"""How a claim is admitted: the attempt, the place in the queue, and the grants to those who wait.

The claim row is the guard. Whoever changes what a claim holds locks its row first, then slots in the order of (limit,
n); a statement that cannot have a slot's lock at once passes the slot over, so nothing here waits for a holder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    Connection,
    and_,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    tuple_,
    update,
)

from penstock.claim import Claim, ClaimKind, Liveness
from penstock.decision import HeldSlot
from penstock.rules import Demand
from penstock.store import tables as t
from penstock.store.contract import ClaimState, Event, Owner
from penstock.store.dialects import Dialect

PRIORITY_STEP = 60_000_000
PRIORITY_BOUND = 3_600_000_000
GRANTS_PER_PASS = 100


class Unsettled(Exception):
    """Limits that do not exist yet, or not with the capacity that the configuration gives them now."""

    def __init__(self, demands: Sequence[Demand]) -> None:
        super().__init__()
        self.demands = demands


def digest(text: str) -> str:
    """SHA-256 in hex: what keys and holders are looked up by."""
    return hashlib.sha256(text.encode()).hexdigest()


def rank(now: int, priority: int) -> int:
    """The place in the queue: µs, lower first. A step of priority is worth 60 s of waiting, at most an hour in all."""
    return now - max(-PRIORITY_BOUND, min(PRIORITY_BOUND, priority * PRIORITY_STEP))


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


def write_claim(
    connection: Connection,
    dialect: Dialect,
    claim: Claim,
    demands: Sequence[Demand],
    owner: Owner,
    *,
    state: ClaimState,
    version: int,
    now: int,
    eligible_at: int,
) -> bool:
    """Write the claim unless its id was used before or its holder has a live one. False if so."""
    holder = claim.holder
    held = state is ClaimState.HELD
    values = {
        "id": claim.claim_id,
        "live_holder": digest(holder) if holder is not None else None,
        "kind": claim.kind.value,
        "host": claim.host,
        "deployment": claim.deployment,
        "run_id": claim.run_id,
        "op_id": claim.op_id,
        "attempt": claim.attempt,
        "in_run": claim.in_run,
        "pools": dict(claim.pools),
        "tags": dict(claim.tags),
        "priority": claim.priority,
        "url": claim.url,
        "demands": {demand.key: demand.slots for demand in demands},
        "version": version,
        "rank": rank(now, claim.priority),
        "state": state.value,
        "enqueued_at": now,
        "eligible_at": eligible_at,
        "granted_at": now if held else None,
        "acknowledged_at": now if held else None,
        **ownership(claim.kind, owner, now, held=held),
    }
    statement = dialect.insert(t.claim).on_conflict_do_nothing().returning(t.claim.c.id)
    if connection.execute(statement, values).first() is None:
        return False
    join_run(connection, dialect, claim.kind, claim.claim_id, owner)
    return True


def ownership(kind: ClaimKind, owner: Owner, now: int, *, held: bool) -> dict[str, Any]:
    """The columns that say who keeps the claim alive, and until when without a process."""
    if owner.probe_seconds is not None and held:
        seconds, liveness = owner.probe_seconds, Liveness.PROBE
    elif owner.session_id is not None and owner.probe_seconds is None:
        # A run belongs to all sessions that joined it, an op to one.
        session_id = owner.session_id if kind is ClaimKind.OP else None
        return {"liveness": Liveness.SESSION.value, "session_id": session_id, "deadline": None}
    else:
        seconds, liveness = owner.ticket_seconds, Liveness.TICKET
    return {"liveness": liveness.value, "session_id": None, "deadline": now + int(seconds * 1_000_000)}


def join_run(connection: Connection, dialect: Dialect, kind: ClaimKind, claim_id: str, owner: Owner) -> None:
    """Make the session a member of a run's claim; a probed run needs none."""
    if kind is ClaimKind.RUN and owner.session_id is not None and owner.probe_seconds is None:
        connection.execute(
            dialect.insert(t.member).on_conflict_do_nothing(),
            {"claim_id": claim_id, "session_id": owner.session_id},
        )


def others_ahead(connection: Connection, claim_id: str, rank_: int, ids: Mapping[str, int]) -> bool:
    """Whether anybody of lower rank waits for one of these limits; the queue then decides, not the attempt."""
    if not ids:
        return False
    w = t.waiter.c
    before = or_(w.rank < rank_, and_(w.rank == rank_, w.claim_id < claim_id))
    return bool(connection.scalar(select(exists().where(w.limit_id.in_(list(ids.values())), before))))


def take_slots(
    connection: Connection,
    dialect: Dialect,
    claim_id: str,
    wanted: Mapping[str, int],
    ids: Mapping[str, int],
    unlimited: frozenset[str],
    *,
    skip_locked: bool = True,
) -> tuple[HeldSlot, ...] | None:
    """Mark all slots that the claim wants; None when some are missing, and then the caller must roll back.

    `skip_locked=False` waits for those who hold a row's lock, so that a slot about to be free is not taken for held.
    """
    s = t.slot.c
    slots: list[HeldSlot] = []
    # Limits without capacity first: their lock is the only one that waits, so it is taken while no slot is locked.
    for key in sorted(wanted, key=lambda key: (key not in unlimited, key)):
        count, limit_id = wanted[key], ids[key]
        if key in unlimited:
            still = select(t.limit.c.id).where(t.limit.c.id == limit_id, t.limit.c.capacity.is_(None))
            if connection.execute(still.with_for_update(read=True, key_share=True)).first() is None:
                return None
            for _ in range(count):
                epoch = connection.scalar(select(dialect.next_epoch(connection)))
                row = {"limit_id": limit_id, "n": epoch, "claim_id": claim_id, "epoch": epoch, "usable": False}
                connection.execute(insert(t.slot), row)
                slots.append(HeldSlot(key, int(epoch or 0), int(epoch or 0)))
            continue
        free = (
            select(s.limit_id, s.n)
            .where(s.limit_id == limit_id, s.claim_id.is_(None), s.usable)
            .order_by(s.n)
            .limit(count)
            .with_for_update(skip_locked=skip_locked)
            .cte("free")
            .prefix_with("MATERIALIZED")
        )
        mark = (
            update(t.slot)
            .where(tuple_(s.limit_id, s.n).in_(select(free.c.limit_id, free.c.n)))
            .values(claim_id=claim_id, epoch=dialect.next_epoch(connection))
            .returning(s.n, s.epoch)
        )
        marked = connection.execute(mark).all()
        if len(marked) < count:
            return None
        slots += [HeldSlot(key, row.n, row.epoch) for row in marked]
    return tuple(sorted(slots, key=lambda held: (held.limit, held.slot)))


def free_slots(connection: Connection, claim_id: str) -> None:
    """Free what a claim holds; closed slots go. The claim's row must be locked."""
    s = t.slot.c
    held = (
        select(s.limit_id, s.n)
        .where(s.claim_id == claim_id)
        .order_by(s.limit_id, s.n)
        .with_for_update()
        .cte("held")
        .prefix_with("MATERIALIZED")
    )
    mine = tuple_(s.limit_id, s.n).in_(select(held.c.limit_id, held.c.n))
    connection.execute(update(t.slot).where(mine, s.usable).values(claim_id=None))
    connection.execute(delete(t.slot).where(s.claim_id == claim_id))


def slots_of(connection: Connection, claim_id: str) -> tuple[HeldSlot, ...]:
    """What a claim holds."""
    rows = connection.execute(
        select(t.limit.c.key, t.slot.c.n, t.slot.c.epoch)
        .join(t.limit, t.limit.c.id == t.slot.c.limit_id)
        .where(t.slot.c.claim_id == claim_id)
        .order_by(t.limit.c.key, t.slot.c.n)
    )
    return tuple(HeldSlot(row.key, row.n, row.epoch) for row in rows)


def renew_epochs(connection: Connection, dialect: Dialect, claim_id: str) -> None:
    """A new process takes the claim over: the old one's epochs are stale from now on."""
    connection.execute(update(t.slot).where(t.slot.c.claim_id == claim_id).values(epoch=dialect.next_epoch(connection)))


def queue(connection: Connection, claim_id: str, rank_: int, wanted: Mapping[str, int], ids: Mapping[str, int]) -> None:
    """Put a claim into the queue of every limit that it wants, instead of what it was queued for before."""
    connection.execute(delete(t.waiter).where(t.waiter.c.claim_id == claim_id))
    if wanted:
        rows = [
            {"limit_id": ids[key], "rank": rank_, "claim_id": claim_id, "slots": slots}
            for key, slots in sorted(wanted.items())
        ]
        connection.execute(insert(t.waiter), rows)


def grantable(connection: Connection, now: int, version: int) -> Sequence[t.StoredRow]:
    """Waiters whose every limit has room for them now, in order. A plain read: what it finds is checked again."""
    s, c = t.slot.c, t.claim.c
    free = (
        select(s.limit_id, func.count().label("slots"))
        .where(s.claim_id.is_(None), s.usable)
        .group_by(s.limit_id)
        .subquery("free")
    )
    other = t.waiter.alias("other")
    short = (
        select(literal(1))
        .select_from(
            other.join(t.limit, t.limit.c.id == other.c.limit_id).outerjoin(free, free.c.limit_id == other.c.limit_id)
        )
        .where(
            other.c.claim_id == c.id,
            t.limit.c.capacity.is_not(None),
            func.coalesce(free.c.slots, 0) < other.c.slots,
        )
        .correlate(t.claim)
    )
    statement = (
        select(c.id, c.rank, c.demands)
        .where(c.state == ClaimState.WAITING.value, c.version == version, c.eligible_at <= now, ~short.exists())
        .order_by(c.rank, c.id)
        .limit(GRANTS_PER_PASS)
    )
    return connection.execute(statement).all()


def grant(connection: Connection, dialect: Dialect, now: int, version: int) -> int:
    """Grant one batch, in order. The grant lock must be held, taken in an earlier statement. Returns how many."""
    candidates = grantable(connection, now, version)
    keys = sorted({key for row in candidates for key in row.demands})
    if not candidates:
        return 0
    rows = connection.execute(
        select(t.limit.c.key, t.limit.c.id, t.limit.c.capacity).where(t.limit.c.digest.in_([digest(k) for k in keys]))
    ).all()
    ids = {row.key: row.id for row in rows}
    unlimited = frozenset(row.key for row in rows if row.capacity is None)
    granted, contested = 0, set[str]()
    for row in candidates:
        # A slot that somebody else has under way bars this limit for the rest of the batch: grants follow rank.
        if contested.isdisjoint(row.demands) and ids.keys() >= row.demands.keys():
            if _grant_one(connection, dialect, row, ids, unlimited, now):
                granted += 1
            else:
                contested.update(key for key in row.demands if key not in unlimited)
    return granted


def _grant_one(
    connection: Connection,
    dialect: Dialect,
    row: t.StoredRow,
    ids: Mapping[str, int],
    unlimited: frozenset[str],
    now: int,
) -> bool:
    c = t.claim.c
    locked = connection.execute(
        select(t.claim).where(c.id == row.id, c.state == ClaimState.WAITING.value).with_for_update(skip_locked=True)
    ).first()
    if locked is None:
        return False
    with connection.begin_nested() as savepoint:
        if take_slots(connection, dialect, row.id, row.demands, ids, unlimited) is None:
            savepoint.rollback()
            return False
    connection.execute(update(t.claim).where(c.id == row.id).values(state=ClaimState.GRANTED.value, granted_at=now))
    connection.execute(delete(t.waiter).where(t.waiter.c.claim_id == row.id))
    record(connection, Event.GRANTED, locked, now, waited=now - locked.enqueued_at)
    return True


def end_claim(connection: Connection, row: t.StoredRow, event: Event, now: int, detail: str | None = None) -> None:
    """End a claim whose row is locked: its slots are free, its place is gone, its id is a tombstone."""
    if row.state in (ClaimState.GRANTED.value, ClaimState.HELD.value):
        free_slots(connection, row.id)
    else:
        connection.execute(delete(t.waiter).where(t.waiter.c.claim_id == row.id))
    if row.kind == ClaimKind.RUN.value:
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
) -> None:
    """Write one event of a claim into the history, in the transaction that made it happen."""
    label = " ".join(part for part in (f"{row.host}/{row.deployment}", row.run_id, row.op_id) if part)
    connection.execute(
        insert(t.history),
        {
            "at": now,
            "event": event.value,
            "claim_id": row.id,
            "host": row.host,
            "deployment": row.deployment,
            "label": label,
            "slots": row.demands,
            "waited": waited,
            "held": held,
            "detail": detail,
        },
    )
