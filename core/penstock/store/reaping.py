"""What nobody stands behind any more: expired sessions and tickets, unacknowledged grants, old tombstones."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, or_, select, union_all, update

from penstock.claim import ClaimKind, Liveness
from penstock.session import steady_seconds
from penstock.settings import StoreTimes
from penstock.store import tables as t
from penstock.store.admission import end_claim, free_slots, record
from penstock.store.contract import ClaimState, Event

JUMP = 10_000_000
"""A database clock that moved this much (µs) against our own steady one since the last look has jumped."""


class ClockJumps:
    """Notices when the store was away, or its clock was set, for longer than sessions can be expected to survive."""

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None

    def seen(self, now: int) -> bool:
        """Whether the store's clock ran away from ours since the last call."""
        steady = steady_seconds()
        last, self._last = self._last, (now, steady)
        return last is not None and abs((now - last[0]) - (steady - last[1]) * 1_000_000) > JUMP


def extend_all(connection: Connection) -> None:
    """After a jump of the clock: every session and ticket gets its time once more before anything is reaped."""
    connection.execute(update(t.session).values(expires_at=t.session.c.expires_at + t.session.c.ttl))
    connection.execute(
        update(t.claim).where(t.claim.c.deadline.is_not(None)).values(deadline=t.claim.c.deadline + 30_000_000)
    )


def due(connection: Connection, now: int, times: StoreTimes) -> bool:
    """Whether there is anything to reap; a plain read."""
    looks = union_all(
        select(t.session.c.id).where(_session_expired(now, times)),
        select(t.claim.c.id).where(or_(_unowned(now), _unacknowledged(now, times), _old_tombstone(now, times))),
    ).limit(1)
    return connection.execute(looks).first() is not None


def reap(connection: Connection, now: int, times: StoreTimes) -> None:
    """End what has expired and park what was not acknowledged. The grant lock must be held."""
    # The session goes first, its expiry checked on the locked row: a beat that came in between keeps it.
    connection.execute(delete(t.session).where(_session_expired(now, times)))
    gone = ~exists().where(t.session.c.id == t.member.c.session_id)
    connection.execute(delete(t.member).where(gone))
    for row in connection.execute(
        select(t.claim).where(_unowned(now)).order_by(t.claim.c.id).with_for_update(skip_locked=True)
    ).all():
        end_claim(connection, row, Event.EXPIRED, now)
    for row in connection.execute(
        select(t.claim).where(_unacknowledged(now, times)).order_by(t.claim.c.id).with_for_update(skip_locked=True)
    ).all():
        free_slots(connection, row.id)
        connection.execute(
            update(t.claim).where(t.claim.c.id == row.id).values(state=ClaimState.PARKED.value, granted_at=None)
        )
        record(connection, Event.PARKED, row, now)
    connection.execute(delete(t.claim).where(_old_tombstone(now, times)))


def _session_expired(now: int, times: StoreTimes) -> ColumnElement[bool]:
    return t.session.c.expires_at < now - int(times.grace_seconds * 1_000_000)


def _unowned(now: int) -> ColumnElement[bool]:
    c = t.claim.c
    joined = exists().where(t.member.c.claim_id == c.id, t.session.c.id == t.member.c.session_id)
    return and_(
        c.state != ClaimState.ENDED.value,
        or_(
            and_(c.session_id.is_not(None), ~exists().where(t.session.c.id == c.session_id)),
            c.deadline < now,
            and_(c.kind == ClaimKind.RUN.value, c.liveness == Liveness.SESSION.value, ~joined),
        ),
    )


def _unacknowledged(now: int, times: StoreTimes) -> ColumnElement[bool]:
    c = t.claim.c
    ticket = int(times.acknowledge_ticket_seconds * 1_000_000)
    live = int(times.acknowledge_seconds * 1_000_000)
    return and_(
        c.state == ClaimState.GRANTED.value,
        or_(
            and_(c.liveness == Liveness.SESSION.value, c.granted_at < now - live),
            and_(c.liveness != Liveness.SESSION.value, c.granted_at < now - ticket),
        ),
    )


def _old_tombstone(now: int, times: StoreTimes) -> ColumnElement[bool]:
    return and_(
        t.claim.c.state == ClaimState.ENDED.value,
        t.claim.c.ended_at < now - int(times.tombstone_seconds * 1_000_000),
    )
