"""Claims that do not wait: decided exactly, under the grant lock, so that of N with room for one exactly one wins."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import Connection, exists, or_, select, update

from penstock.claim import ClaimKind
from penstock.store import admission, granting, limits
from penstock.store import tables as t
from penstock.store.asking import HEARD_OF, Ask, rank
from penstock.store.contract import ClaimState, Event, Mode, Outcome, Result
from penstock.store.database import Transaction
from penstock.store.dialects import Dialect
from penstock.store.digests import digest
from penstock.store.reservation import Room, Waiter, fits
from penstock.store.touching import session_is_alive

SKIPPED_SECONDS = 24 * 3600.0
"""How long a skipped run is remembered when nobody says that it is over."""
CONTESTED_LOOKS, CONTESTED_SECONDS = 10, 0.005
"""So often, and so long after one another, those who wait are looked at again while somebody has one of their rows."""


def decide(tx: Transaction, dialect: Dialect, ask: Ask, mode: Mode, granted: list[str]) -> Outcome | None:
    """Admit the claim, or leave nothing behind but what `mode` says. None: the id or the holder is known already.

    The grant lock is held. Everybody who waits and fits is granted before, and named in `granted`. Raises Unsettled.
    """
    claim_id, connection, now = ask.claim.claim_id, tx.connection, tx.now
    if ask.owner.session_id is not None and not session_is_alive(connection, ask.owner.session_id):
        return Outcome(Result.SESSION_LOST, claim_id)
    ids = admission.limit_ids(connection, ask.demands)
    if _is_known(connection, ask):
        return None
    numbers = _pick(connection, ask, ids)
    # What is free now is locked. Those who wait go first; what becomes free after they looked is nobody's yet.
    looks_left = CONTESTED_LOOKS
    while True:
        batch = granting.grant(tx.cursor, ask.clock_shift)
        contested = batch.contested & ids.keys()
        if batch.granted:
            granted += batch.granted
            numbers = _pick(connection, ask, ids)
        elif contested and looks_left:  # somebody who waits there is touched just now
            looks_left -= 1
            time.sleep(CONTESTED_SECONDS)
        else:
            break
    short = _short(tx, ask, numbers, contested)
    if short and mode is not Mode.OBSERVE:
        if mode is Mode.SKIP and ask.claim.kind is ClaimKind.RUN:
            _remember_skip(connection, dialect, ask, now)
        return Outcome(Result.NO_ROOM, claim_id)
    if any(d.capacity is None and not admission.still_unlimited(connection, ids[d.key]) for d in ask.demands):
        return Outcome(Result.STALE, claim_id)
    if not admission.write_claim(connection, dialect, ask, now, observed=bool(short)):
        return None
    admission.join_run(connection, dialect, ask.claim.kind, claim_id, ask.owner)
    _take(connection, ask, now, ids, numbers, short)
    return Outcome(Result.HELD, claim_id, admission.slots_of(connection, claim_id), tuple(short))


def _take(
    connection: Connection,
    ask: Ask,
    now: int,
    ids: Mapping[str, int],
    numbers: Mapping[str, list[int]],
    short: Sequence[str],
) -> None:
    """Give the claim, which has been written, these slots, and others above the capacity for what it observes."""
    claim_id = ask.claim.claim_id
    row = admission.claim_row(connection, claim_id)
    epoch = admission.record(connection, Event.GRANTED, row, now, waited=0)
    for d in ask.demands:
        free = numbers.get(d.key, [])
        for n in free:
            admission.take(connection, claim_id, ids[d.key], n, epoch)
        for n in granting.numbers_above(epoch, d.slots - len(free)):
            admission.take_above(connection, claim_id, ids[d.key], n, epoch)
        if d.capacity is not None and len(free) < d.slots:
            # More is held than the capacity from now on: nobody else gets in before that has drained.
            limits.refit(connection, ids[d.key])
    if short:
        admission.record(connection, Event.OBSERVED, row, now, detail="would have waited for " + ", ".join(short))


def _pick(connection: Connection, ask: Ask, ids: Mapping[str, int]) -> dict[str, list[int]]:
    """Free slots of each bounded limit that it wants, locked, as many as there are of what it needs."""
    return {
        demand.key: admission.free_numbers(connection, ids[demand.key], demand.slots, skip_locked=False)
        for demand in ask.demands
        if demand.capacity is not None
    }


def _is_known(connection: Connection, ask: Ask) -> bool:
    c, holder = t.claim.c, ask.claim.holder
    same = [c.id == ask.claim.claim_id]
    if holder is not None:
        same.append(c.live_holder == digest(holder))
    return bool(connection.scalar(select(exists().where(or_(*same)))))


def _short(tx: Transaction, ask: Ask, numbers: Mapping[str, list[int]], contested: Collection[str]) -> Sequence[str]:
    """The limits that have no room for the claim beyond what is reserved, or what those who wait could not take yet."""
    wants = {demand.key: demand.slots for demand in ask.demands}
    parent_id = ask.claim.parent_id
    around = granting.limits_around(tx.cursor, [parent_id]).get(parent_id, ()) if parent_id is not None else ()
    read = granting.read_limits(tx.cursor, wants)
    reserved = granting.reserved_now(tx.cursor, read, tx.now, ask.version)
    rooms = {key: Room(limit.capacity, limit.free) for key, limit in read.items()}
    mine = rank(tx.now, ask.claim.priority)
    changed_at = tx.connection.scalar(
        select(t.configuration.c.changed_at).where(t.configuration.c.version == ask.version)
    )
    fresh = changed_at is not None and tx.now < changed_at + HEARD_OF
    ahead = granting.unresolved(tx.cursor, read, ask.version) if fresh else {}
    return [
        key
        for key, slots in wants.items()
        if key in contested
        or len(numbers.get(key, range(slots))) < slots
        or ahead.get(key, mine + 1) <= mine
        or not fits(Waiter(ask.claim.claim_id, tx.now, {key: slots}, around), rooms, reserved, tx.now)
    ]


def _remember_skip(connection: Connection, dialect: Dialect, ask: Ask, now: int) -> None:
    if admission.write_claim(connection, dialect, ask, now, observed=False):
        values = {
            "state": ClaimState.SKIPPED.value,
            "liveness": "ticket",
            "session_id": None,
            "deadline": now + int(SKIPPED_SECONDS * 1_000_000),
            "granted_at": None,
            "acknowledged_at": None,
        }
        connection.execute(update(t.claim).where(t.claim.c.id == ask.claim.claim_id).values(values))
        admission.record(connection, Event.SKIPPED, admission.claim_row(connection, ask.claim.claim_id), now)
