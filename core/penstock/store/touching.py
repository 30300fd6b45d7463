"""Speaking up for a claim that is in the store: acknowledge its grant, leave parking, adopt it, or keep waiting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, delete, select, update

from penstock.claim import ClaimKind, Liveness
from penstock.rules import Demand
from penstock.store import admission
from penstock.store import tables as t
from penstock.store.asking import joins
from penstock.store.contract import ClaimState, Event, Outcome, Owner, Result
from penstock.store.database import Transaction
from penstock.store.dialects import Dialect


def touch(
    tx: Transaction, dialect: Dialect, claim_id: str, demands: Sequence[Demand], version: int, owner: Owner
) -> Outcome:
    """See `Store.touch`. Raises Unsettled when a limit is to be made first."""
    row = admission.claim_row(tx.connection, claim_id, lock=True)
    if row is None or row.state == ClaimState.ENDED.value:
        # Where there is none, a crash of the server has taken the place in the queue back.
        expired = (row is None or row.outcome == Event.EXPIRED.value) and owner.session_id is not None
        return Outcome(Result.EXPIRED if expired else Result.ENDED, claim_id)
    if row.state == ClaimState.SKIPPED.value:
        return Outcome(Result.SKIPPED, claim_id)
    kind = ClaimKind(row.kind)
    if _is_in_other_hands(tx.connection, row, kind, owner):
        return Outcome(Result.BUSY, claim_id)
    waits = row.state in (ClaimState.WAITING.value, ClaimState.PARKED.value)
    if waits and tx.version != version:
        return Outcome(Result.STALE, claim_id)
    if owner.session_id is not None and not session_is_alive(tx.connection, owner.session_id):
        return Outcome(Result.SESSION_LOST, claim_id)
    if waits:
        # Under one version the same claim comes to the same: what was asked first stands, whoever joins with less.
        stands = row.state == ClaimState.WAITING.value and row.version == version
        if demands or stands:
            _wait_on(tx, row, kind, demands, version, owner, stands=stands)
            admission.join_run(tx.connection, dialect, kind, claim_id, owner)
            return Outcome(Result.WAITING, claim_id, waited_seconds=(tx.now - row.enqueued_at) / 1_000_000)
        # Nothing bars it any more: the rules that did are gone.
        tx.connection.execute(delete(t.waiter).where(t.waiter.c.claim_id == claim_id))
        _update(tx.connection, claim_id, {"demands": {}, "version": version, "granted_at": tx.now})
        row = admission.claim_row(tx.connection, claim_id)
        admission.record(tx.connection, Event.GRANTED, row, tx.now, waited=tx.now - row.enqueued_at)
    _hold(tx, row, kind, owner)
    admission.join_run(tx.connection, dialect, kind, claim_id, owner)
    own = kind is ClaimKind.OP and row.session_id is not None
    return Outcome(
        Result.HELD,
        claim_id,
        admission.slots_of(tx.connection, claim_id),
        joined=row.state == ClaimState.HELD.value and not own,
        waited_seconds=((row.granted_at or tx.now) - row.enqueued_at) / 1_000_000,
    )


def _is_in_other_hands(connection: Connection, row: t.StoredRow, kind: ClaimKind, owner: Owner) -> bool:
    """Whether sessions keep the claim alive, and the owner is neither one of them nor becomes one."""
    if kind is ClaimKind.OP:
        return row.session_id is not None and bool(row.session_id != owner.session_id)
    if row.liveness != Liveness.SESSION.value or joins(kind, owner):
        return False
    mine = (t.member.c.claim_id == row.id) & (t.member.c.session_id == owner.session_id)
    return connection.execute(select(t.member).where(mine)).first() is None


def renew(tx: Transaction, claim_ids: Sequence[str], ticket_seconds: float) -> set[str]:
    """See `Store.renew`."""
    live = t.claim.c.id.in_(claim_ids) & (t.claim.c.state != ClaimState.ENDED.value)
    deadline = tx.now + int(ticket_seconds * 1_000_000)
    timed = t.claim.c.liveness.in_([Liveness.TICKET.value, Liveness.PROBE.value]) & (t.claim.c.deadline < deadline)
    locked = select(t.claim.c.id).where(live & timed).order_by(t.claim.c.id).with_for_update(skip_locked=True)
    mine = tx.connection.scalars(locked).all()
    tx.connection.execute(update(t.claim).where(t.claim.c.id.in_(mine)).values(deadline=deadline))
    return set(tx.connection.scalars(select(t.claim.c.id).where(live)))


def _wait_on(
    tx: Transaction,
    row: t.StoredRow,
    kind: ClaimKind,
    demands: Sequence[Demand],
    version: int,
    owner: Owner,
    *,
    stands: bool,
) -> None:
    owned = admission.owned(kind, owner, tx.now, held=False)
    if stands:
        unmoved = row.session_id == owned["session_id"] and row.liveness == owned["liveness"]
        if not unmoved or owned["deadline"] is not None:
            _update(tx.connection, row.id, owned)
        return
    wanted = {demand.key: demand.slots for demand in demands}
    admission.queue(tx.connection, row, wanted, admission.limit_ids(tx.connection, demands))
    _update(tx.connection, row.id, {"state": ClaimState.WAITING.value, "demands": wanted, "version": version, **owned})


def _hold(tx: Transaction, row: t.StoredRow, kind: ClaimKind, owner: Owner) -> None:
    owned = admission.owned(kind, owner, tx.now, held=True)
    adopted = row.liveness == Liveness.TICKET.value and owned["liveness"] == Liveness.SESSION.value
    if adopted and row.state == ClaimState.HELD.value:
        admission.renew_epochs(tx.connection, row, tx.now)
    acknowledged = tx.now if row.state != ClaimState.HELD.value else row.acknowledged_at
    _update(tx.connection, row.id, {"state": ClaimState.HELD.value, "acknowledged_at": acknowledged, **owned})


def _update(connection: Connection, claim_id: str, values: dict[str, Any]) -> None:
    connection.execute(update(t.claim).where(t.claim.c.id == claim_id).values(values))


def session_is_alive(connection: Connection, session_id: str) -> bool:
    """Whether the session has not been reaped."""
    return connection.execute(select(t.session.c.id).where(t.session.c.id == session_id)).first() is not None


def leave(connection: Connection, row: t.StoredRow, session_id: str | None) -> bool:
    """Take the session out of a claim whose row is locked; False if it is another's by now, or handed over."""
    if row.kind == ClaimKind.OP.value:
        return bool(row.session_id == session_id)
    if row.liveness == Liveness.PARENT.value:
        return False  # it is the run's, and goes with it
    mine = (t.member.c.claim_id == row.id) & (t.member.c.session_id == session_id)
    connection.execute(delete(t.member).where(mine))
    return True


def hand_over(connection: Connection, row: t.StoredRow, session_id: str) -> bool:
    """As `leave`, of a claim that goes on without a session: an op's, a late pool that its run still waits for, or a
    run's that no other session holds beside this one.
    """
    if row.kind == ClaimKind.OP.value:
        return leave(connection, row, session_id)
    members = connection.scalars(select(t.member.c.session_id).where(t.member.c.claim_id == row.id)).all()
    if row.kind == ClaimKind.RUN.value and (row.liveness != Liveness.SESSION.value or len(members) > 1):
        return False
    return session_id in members and leave(connection, row, session_id)


def is_ticket(row: t.StoredRow) -> bool:
    """Whether it has been handed over, and nobody has adopted it yet."""
    return bool(row.kind != ClaimKind.RUN.value and row.liveness == Liveness.TICKET.value and row.session_id is None)


def is_last(connection: Connection, row: t.StoredRow) -> bool:
    """Whether nobody is left in a claim whose row is locked."""
    if row.kind == ClaimKind.OP.value or row.liveness != Liveness.SESSION.value:
        return True
    return connection.execute(select(t.member).where(t.member.c.claim_id == row.id)).first() is None
