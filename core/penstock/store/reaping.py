"""What nobody stands behind any more: expired sessions and tickets, unacknowledged grants, old tombstones."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from sqlalchemy import (
    ColumnElement,
    Connection,
    ScalarSelect,
    Select,
    and_,
    delete,
    exists,
    func,
    literal_column,
    or_,
    select,
    union_all,
    update,
)

from penstock.claim import ClaimKind, Liveness
from penstock.session import steady_seconds
from penstock.settings import StoreTimes
from penstock.store import tables as t
from penstock.store.admission import end_claim, free_slots, record
from penstock.store.asking import WHY_EXPIRED
from penstock.store.contract import ClaimState, Event, Expired
from penstock.store.reading import claim_of

JUMP = 10_000_000
"""A database clock that moved this much (µs) against our own steady one since the last look has jumped; or half the
shortest TTL, if that is less.
"""
SHORTEST_TTL = 1_000_000
"""No process may set a shorter one (µs)."""
TICKET_AFTER_JUMP = 300_000_000
"""What a ticket still has (µs) after a jump, if it has not more: as much as one has after a touch by default."""
PRUNED = 5000
"""So many events are dropped in one transaction."""
AT_ONCE = 500
"""So many claims are named in one statement: databases take a few ten thousand values at most."""


class ClockJumps:
    """Notices when the store's clock was set: by more than the differences between two clocks that run on."""

    def __init__(self) -> None:
        self._asked: _Reading | None = None
        self._last: _Reading | None = None
        self.clean_at: int | None = None  # the store's time at the last look that found nothing to reap

    def seen(self, ask: Callable[[], int], shortest_ttl: int | None) -> bool:
        """Whether the store's clock, which is asked, ran away from ours since the last call. Again until it is `borne`.

        Holders count their TTL by a steady clock: no step of half of it may pass for time that went by.
        """
        before = steady_seconds()
        now = ask()
        self._asked, last = _Reading(now, before, steady_seconds()), self._last
        least = JUMP if shortest_ttl is None else min(JUMP, max(shortest_ttl, SHORTEST_TTL) // 2)
        jumped = last is not None and self._asked.differs_from(last, by=least)
        if not jumped:
            self._last = self._asked
        return jumped

    def borne(self) -> None:
        """Everybody has been given the time for it."""
        self._last, self.clean_at = self._asked, None


@dataclass(frozen=True, slots=True)
class _Reading:
    """The store's time (µs), and ours (seconds) before and after it was told: a process may be stopped in between."""

    now: int
    before: float
    after: float

    def differs_from(self, last: _Reading, *, by: int) -> bool:
        """Whether the store's clock made more, or less, than that (µs) beside ours, whenever it was read in between."""
        made = self.now - last.now
        least, most = (self.before - last.after) * 1_000_000, (self.after - last.before) * 1_000_000
        return made > most + by or made < least - by


def give_time(connection: Connection, now: int, clean_at: int | None, times: StoreTimes) -> None:
    """What has expired before the last look, which found nothing, was written since, by a clock that had been set and
    was set right again before anybody looked: it has its time from now on.
    """
    if clean_at is None:
        return
    living = t.claim.c.state != ClaimState.ENDED.value
    late = now + TICKET_AFTER_JUMP
    connection.execute(
        update(t.session).where(_session_expired(clean_at, times)).values(expires_at=now + t.session.c.ttl)
    )
    connection.execute(update(t.claim).where(living, t.claim.c.deadline < clean_at).values(deadline=late))


def extend_all(connection: Connection, now: int) -> None:
    """After a jump of the clock: every session has its TTL from now on, every ticket some minutes, wherever it went.

    Counted from now, not added: several processes see the same jump, and the next look must reap none of them.
    """
    connection.execute(update(t.session).values(expires_at=now + t.session.c.ttl))
    least = now + TICKET_AFTER_JUMP
    connection.execute(update(t.claim).where(t.claim.c.deadline < least).values(deadline=least))
    # "Not before" was said by the clock as it was: where that went back an hour, everybody would wait for an hour.
    connection.execute(update(t.claim).where(t.claim.c.eligible_at > now).values(eligible_at=now))


def shortest_ttl() -> ScalarSelect[int | None]:
    """Of all sessions, in µs."""
    return select(func.min(t.session.c.ttl)).scalar_subquery()


def due(connection: Connection, now: int, times: StoreTimes) -> bool:
    """Whether there is anything to reap; a plain read."""
    looks = union_all(
        select(t.session.c.id).where(_session_expired(now, times)),
        *_looks_for_unowned(now),
        select(t.claim.c.id).where(_unacknowledged(now, times)),
        select(t.claim.c.id).where(_old_tombstone(now, times)),
    ).limit(1)
    return connection.execute(looks).first() is not None


def reap(connection: Connection, now: int, times: StoreTimes) -> tuple[Expired, ...]:
    """End what has expired and park what was not acknowledged. The grant lock must be held. What was ended."""
    expired = []
    # The session goes first, its expiry checked on the locked row: a beat that came in between keeps it.
    connection.execute(delete(t.session).where(_session_expired(now, times)))
    gone = ~exists().where(t.session.c.id == t.member.c.session_id)
    connection.execute(delete(t.member).where(gone))
    found = sorted(set(connection.scalars(union_all(*_looks_for_unowned(now)))))
    ended = set[str]()
    for first in range(0, len(found), AT_ONCE):
        these = and_(t.claim.c.id.in_(found[first : first + AT_ONCE]), _unowned(now))
        # Runs before their late pools, which go with them.
        unowned = select(t.claim).where(these).order_by(t.claim.c.kind == ClaimKind.RUN_POOL.value, t.claim.c.id)
        for row in connection.execute(unowned.with_for_update(skip_locked=True)).all():
            if row.kind == ClaimKind.RUN_POOL.value and row.parent_id in ended:
                continue
            ended.add(row.id)
            reason = WHY_EXPIRED[Liveness(row.liveness)]
            end_claim(connection, row, Event.EXPIRED, now, reason)
            held = None if row.granted_at is None else (now - row.granted_at) / 1_000_000
            expired.append(Expired(claim_of(row), held, reason))
    for row in connection.execute(
        select(t.claim).where(_unacknowledged(now, times)).order_by(t.claim.c.id).with_for_update(skip_locked=True)
    ).all():
        free_slots(connection, row.id)
        connection.execute(
            update(t.claim).where(t.claim.c.id == row.id).values(state=ClaimState.PARKED.value, granted_at=None)
        )
        record(connection, Event.PARKED, row, now)
    connection.execute(delete(t.claim).where(_old_tombstone(now, times)))
    return tuple(expired)


def have_expired(connection: Connection, claim_ids: Collection[str]) -> set[str]:
    """Of these claims, those that a sweep has ended."""
    ended = t.claim.c.id.in_(claim_ids) & (t.claim.c.outcome == Event.EXPIRED.value)
    return set(connection.scalars(select(t.claim.c.id).where(ended)))


def prune_history(connection: Connection, before: int) -> int:
    """Drop the oldest PRUNED events from before `before` (µs); how many."""
    oldest = select(t.history.c.id).where(t.history.c.at < before).order_by(t.history.c.at).limit(PRUNED).subquery()
    # By a table of its own: MySQL and MariaDB take no LIMIT in the query of an IN.
    return connection.execute(delete(t.history).where(t.history.c.id.in_(select(oldest.c.id)))).rowcount


def _session_expired(now: int, times: StoreTimes) -> ColumnElement[bool]:
    return t.session.c.expires_at < now - int(times.grace_seconds * 1_000_000)


def _looks_for_unowned(now: int) -> list[Select[tuple[str]]]:
    """Each by an index, past the tombstones: of all ways in one condition most databases make a scan."""
    living = t.claim.c.state != ClaimState.ENDED.value
    return [select(t.claim.c.id).where(living, way) for way in _ways_to_be_unowned(now)]


def _unowned(now: int) -> ColumnElement[bool]:
    return and_(t.claim.c.state != ClaimState.ENDED.value, or_(*_ways_to_be_unowned(now)))


def _ways_to_be_unowned(now: int) -> list[ColumnElement[bool]]:
    c = t.claim.c
    parent = t.claim.alias("parent")
    orphan = ~exists().where(parent.c.id == c.parent_id, parent.c.state != ClaimState.ENDED.value)
    joined = exists().where(t.member.c.claim_id == c.id, t.session.c.id == t.member.c.session_id)
    return [
        and_(c.session_id.is_not(None), ~exists().where(t.session.c.id == c.session_id)),
        c.deadline < now,
        and_(t.OF_A_RUN, c.liveness == Liveness.SESSION.value, ~joined),
        and_(t.OF_A_RUN, c.kind == ClaimKind.RUN_POOL.value, c.liveness == Liveness.PARENT.value, orphan),
    ]


def _unacknowledged(now: int, times: StoreTimes) -> ColumnElement[bool]:
    c = t.claim.c
    ticket = int(times.acknowledge_ticket_seconds * 1_000_000)
    live, least = int(times.acknowledge_seconds * 1_000_000), int(times.acknowledge_least_seconds * 1_000_000)
    # Both: more than the least; and than the least with half of the wait. A clock set back makes the wait negative.
    soon = and_(c.granted_at < now - least, 3 * c.granted_at - c.enqueued_at < 2 * (now - least))
    return and_(
        c.state == literal_column(f"'{ClaimState.GRANTED.value}'"),  # no parameter: only so is the index known to serve
        or_(
            and_(c.liveness == Liveness.SESSION.value, or_(c.granted_at < now - live, soon)),
            and_(c.liveness != Liveness.SESSION.value, c.granted_at < now - ticket),
        ),
    )


def _old_tombstone(now: int, times: StoreTimes) -> ColumnElement[bool]:
    return and_(
        t.claim.c.state == ClaimState.ENDED.value,
        t.claim.c.ended_at < now - int(times.tombstone_seconds * 1_000_000),
    )
