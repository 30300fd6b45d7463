"""What those who look ask an SQL store for: a page of claims at a time, and the history line by line."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Connection, Text, and_, cast, func, or_, select, tuple_

from penstock.decision import Reason
from penstock.store import reading
from penstock.store import tables as t
from penstock.store.configured import Configured
from penstock.store.contract import ClaimRow, ClaimState, Event, HistoryRow, LimitRow, Session, SessionRow
from penstock.store.database import Transaction, again_if_undone
from penstock.store.digests import digest
from penstock.store.viewing import Movement, Part, parts_of_tags

WAITS = (ClaimState.WAITING.value, ClaimState.PARKED.value)


class Views(Configured):
    """Its part of `penstock.store.contract.Store`."""

    @again_if_undone
    def mark(self) -> str:
        with self.transaction(read_only=True) as tx:
            last = select(func.max(t.history.c.id)).scalar_subquery()
            queued = select(func.count()).select_from(t.waiter).scalar_subquery()
            facts = select(t.meta.c.configuration_version, t.meta.c.settled_version, last, queued)
            return ".".join(str(fact or 0) for fact in tx.connection.execute(facts).one())

    @again_if_undone
    def limit_row(self, key: str) -> LimitRow | None:
        with self.transaction(read_only=True) as tx:
            return next(iter(reading.limit_rows(tx.connection, t.limit.c.digest == digest(key))), None)

    @again_if_undone
    def holders(self, key: str, *, offset: int = 0, most: int = 50) -> Part:
        with self.transaction(read_only=True) as tx:
            c, s = t.claim.c, t.slot.c
            of_limit = and_(t.limit.c.digest == digest(key), s.claim_id.is_not(None))
            count = tx.connection.scalar(
                select(func.count(s.claim_id.distinct())).join_from(t.slot, t.limit).where(of_limit)
            )
            ids = tx.connection.scalars(
                select(c.id)
                .select_from(t.slot)
                .join(t.limit)
                .join(t.claim, c.id == s.claim_id)
                .where(of_limit)
                .group_by(c.id, c.granted_at)
                .order_by(c.granted_at, c.id)
                .offset(offset)
                .limit(most)
            ).all()
            return _part(tx, count or 0, ids)

    @again_if_undone
    def queue(self, key: str, *, offset: int = 0, most: int = 50) -> Part:
        with self.transaction(read_only=True) as tx:
            w, of_limit = t.waiter.c, t.limit.c.digest == digest(key)
            count = tx.connection.scalar(select(func.count()).select_from(t.waiter).join(t.limit).where(of_limit))
            page = select(w.claim_id).select_from(t.waiter).join(t.limit).where(of_limit)
            ids = tx.connection.scalars(page.order_by(w.rank, w.claim_id).offset(offset).limit(most)).all()
            return _part(tx, count or 0, ids)

    @again_if_undone
    def search(self, text: str, *, offset: int = 0, most: int = 50) -> Part:
        with self.transaction(read_only=True) as tx:
            found, c = reading.LIVE & _matching(text), t.claim.c
            page = select(c.id, func.count().over()).where(found).order_by(c.rank, c.id).offset(offset).limit(most)
            rows = tx.connection.execute(page).all()  # one walk through the claims tells both
            if not rows and offset:
                count = tx.connection.scalar(select(func.count()).select_from(t.claim).where(found))
                return _part(tx, count or 0, ())
            return _part(tx, rows[0][1] if rows else 0, [row[0] for row in rows])

    @again_if_undone
    def movements(self, *, after: tuple[int, int], most: int) -> Sequence[Movement]:
        h = t.history.c
        lines = (
            select(h.at, h.id, h.event, cast(h.slots, Text), h.waited, h.held)
            .where(or_(h.at > after[0], and_(h.at == after[0], h.id > after[1])), h.at >= after[0])
            .order_by(h.at, h.id)
            .limit(most)
        )
        with self.transaction(read_only=True) as tx:
            rows = tx.connection.execute(lines).all()
        return [Movement(at, line, Event(event), _slots(slots), *times) for at, line, event, slots, *times in rows]

    @again_if_undone
    def changes(self, *, most: int) -> tuple[HistoryRow, ...]:
        with self.transaction(read_only=True) as tx:
            return reading.history_rows(
                tx.connection,
                select(t.history)
                .where(t.history.c.event == Event.CHANGED.value)
                .order_by(t.history.c.at.desc(), t.history.c.id.desc())
                .limit(most),
            )

    @again_if_undone
    def waiting_since(self, key: str) -> Sequence[int]:
        of_limit = t.limit.c.digest == digest(key)
        with self.transaction(read_only=True) as tx:
            queued = select(t.waiter.c.enqueued_at).select_from(t.waiter).join(t.limit).where(of_limit)
            return tx.connection.scalars(queued).all()


@lru_cache(maxsize=4096)
def _slots(text: str) -> Mapping[str, int | None]:
    slots: dict[str, int | None] = json.loads(text)
    return slots


def _matching(text: str) -> ColumnElement[bool]:
    """As `viewing.matches`. A tag is looked for in the JSON as it is written."""
    if not text:
        return t.claim.c.id.is_not(None)
    c = t.claim.c
    names = [column.icontains(text, autoescape=True) for column in (c.run_id, c.op_id, c.name)]
    tags = [cast(c.tags, Text).icontains(part, autoescape=True) for part in parts_of_tags(text)]
    return or_(c.id == text, *names, *tags)


def _part(tx: Transaction, count: int, ids: Sequence[str]) -> Part:
    """These claims, in that order."""
    connection = tx.connection
    if not ids:
        return Part(tx.now, count, (), (), {})
    c, m, s = t.claim.c, t.member.c, t.session.c
    of_claims = select(c.session_id).where(c.id.in_(ids), c.session_id.is_not(None))
    of_members = select(m.session_id).where(m.claim_id.in_(ids))
    sessions = tuple(
        SessionRow(
            Session(row.id, row.host, row.deployment, row.pid, row.hostname, row.ttl / 1_000_000), row.expires_at
        )
        for row in connection.execute(
            select(t.session).where(or_(s.id.in_(of_claims), s.id.in_(of_members))).order_by(s.id)
        )
    )
    expiry = {row.session.session_id: row.expires_at for row in sessions}
    known = {row.claim.claim_id: row for row in reading.claims(connection, c.id.in_(ids), expiry)}
    claims = tuple(known[claim_id] for claim_id in ids if claim_id in known)
    return Part(tx.now, count, claims, sessions, _reasons(connection, claims))


def _reasons(connection: Connection, claims: Sequence[ClaimRow]) -> Mapping[str, tuple[Reason, ...]]:
    """What bars each waiter, as `reading.reasons` says of one: its limits are looked at once for all."""
    waiters = [row for row in claims if row.state.value in WAITS]
    keys = sorted({key for row in waiters for key in row.wants})
    if not keys:
        return {row.claim.claim_id: () for row in waiters}
    limits = {
        row.key: row
        for row in connection.execute(select(t.limit).where(t.limit.c.digest.in_([digest(key) for key in keys])))
    }
    ids = {row.id: key for key, row in limits.items()}
    held = _held(connection, list(ids))
    ahead = _ahead(connection, list(ids), [row.claim.claim_id for row in waiters])
    ahead |= _ahead_of_parked(connection, limits, [row for row in waiters if row.state is ClaimState.PARKED])
    named = _holders(connection, list(ids))
    found: dict[str, tuple[Reason, ...]] = {}
    for row in waiters:
        reasons = []
        for key, needed in sorted(row.wants.items()):
            limit = limits.get(key)
            if limit is None or limit.capacity is None:
                continue
            before = ahead.get((limit.id, row.claim.claim_id), 0)
            if limit.capacity - held.get(limit.id, 0) < needed or before:
                names, links = named.get(limit.id, ((), ()))
                reasons.append(Reason(key, needed, limit.capacity, held.get(limit.id, 0), names, before, links))
        found[row.claim.claim_id] = tuple(reasons)
    return found


def _held(connection: Connection, limit_ids: Sequence[int]) -> dict[int, int]:
    s = t.slot.c
    taken = select(s.limit_id, func.count()).where(s.limit_id.in_(limit_ids), s.claim_id.is_not(None))
    held: dict[int, int] = dict(connection.execute(taken.group_by(s.limit_id)).all())
    return held


def _ahead(connection: Connection, limit_ids: Sequence[int], claim_ids: Sequence[str]) -> dict[tuple[int, str], int]:
    """How many stand before each of these claims at each limit, in one walk along each queue."""
    w = t.waiter.c
    place = func.row_number().over(partition_by=w.limit_id, order_by=(w.rank, w.claim_id)) - 1
    queues = select(w.limit_id, w.claim_id, place.label("ahead")).where(w.limit_id.in_(limit_ids)).subquery()
    mine = select(queues).where(queues.c.claim_id.in_(claim_ids))
    return {(row.limit_id, row.claim_id): row.ahead for row in connection.execute(mine)}


def _ahead_of_parked(
    connection: Connection, limits: Mapping[str, Any], parked: Sequence[ClaimRow]
) -> dict[tuple[int, str], int]:
    """A parked claim keeps its place, but stands in no queue."""
    w, ahead = t.waiter.c, {}
    for row in parked:
        for limit in (limits[key] for key in row.wants if key in limits):
            before = tuple_(w.rank, w.claim_id) < tuple_(row.rank, row.claim.claim_id)
            count = select(func.count()).where(w.limit_id == limit.id, before)
            ahead[limit.id, row.claim.claim_id] = connection.scalar(count) or 0
    return ahead


def _holders(
    connection: Connection, limit_ids: Sequence[int]
) -> dict[int, tuple[tuple[str, ...], tuple[str | None, ...]]]:
    """The labels of the first holders of each limit, oldest first, and their links."""
    c, s = t.claim.c, t.slot.c
    columns = (c.host, c.deployment, c.run_id, c.op_id, c.name, c.url, c.granted_at, c.id)
    held = (
        select(s.limit_id, s.claim_id).distinct().where(s.limit_id.in_(limit_ids), s.claim_id.is_not(None)).subquery()
    )
    nth = func.row_number().over(partition_by=held.c.limit_id, order_by=(c.granted_at, c.id)).label("nth")
    holders = select(held.c.limit_id, *columns, nth).join_from(held, t.claim, c.id == held.c.claim_id).subquery()
    first = select(holders).where(holders.c.nth <= reading.HOLDERS_SHOWN).order_by(holders.c.limit_id, holders.c.nth)
    rows: dict[int, list[t.StoredRow]] = defaultdict(list)
    for row in connection.execute(first):
        rows[row.limit_id].append(row)
    return {
        limit_id: (tuple(reading.label_of(*row[1:6]) for row in of_limit), tuple(row.url for row in of_limit))
        for limit_id, of_limit in rows.items()
    }
