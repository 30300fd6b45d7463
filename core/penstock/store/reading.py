"""What is in the store, as plain values."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, func, or_, select, union_all

from penstock.claim import Claim, ClaimKind, Liveness
from penstock.decision import HeldSlot, Reason
from penstock.rules import Source
from penstock.store import tables as t
from penstock.store.contract import (
    ClaimRow,
    ClaimState,
    Deployment,
    Event,
    HistoryRow,
    LimitRow,
    RunLease,
    Session,
    SessionRow,
    Snapshot,
    StoredConfiguration,
)
from penstock.store.digests import digest
from penstock.store.writing import Cursor

IDS_AT_ONCE = 512
HOLDERS_SHOWN = 10
LIVE = t.claim.c.state != ClaimState.ENDED.value
WAITER = "SELECT demands, `rank` FROM penstock_claim WHERE id = :claim_id AND state IN ('waiting', 'parked')"
OCCUPIED = """
SELECT l.`key`, l.id, l.capacity,
    (SELECT count(*) FROM penstock_slot s WHERE s.limit_id = l.id AND s.claim_id IS NOT NULL)
FROM penstock_limit l WHERE l.digest IN ({ids})
"""
AHEAD = """
SELECT count(*) FROM penstock_waiter
WHERE limit_id = :of_limit AND (`rank` < :rank OR (`rank` = :rank AND claim_id < :claim_id))
"""
HOLDERS = """
SELECT DISTINCT c.host, c.deployment, c.run_id, c.op_id, c.name, c.url, c.granted_at, c.id
FROM penstock_slot s JOIN penstock_claim c ON c.id = s.claim_id WHERE s.limit_id = :of_limit
ORDER BY c.granted_at, c.id LIMIT :most
"""
WAITING = """
SELECT id FROM penstock_claim WHERE id IN ({ids}) AND state = 'waiting'
    AND version = (SELECT configuration_version FROM penstock_meta)
"""


def limit_rows(connection: Connection, which: ColumnElement[bool] | None = None) -> tuple[LimitRow, ...]:
    """Every limit, or those, with what is held and waiting, by key."""
    s, w = t.slot.c, t.waiter.c
    in_use = select(s.limit_id, func.count()).where(s.claim_id.is_not(None)).group_by(s.limit_id)
    queued = select(w.limit_id, func.count(), func.min(w.enqueued_at)).group_by(w.limit_id)
    chosen = select(t.limit).order_by(t.limit.c.key)
    if which is not None:
        in_use, queued = (
            in_use.join_from(t.slot, t.limit).where(which),
            queued.join_from(t.waiter, t.limit).where(which),
        )
        chosen = chosen.where(which)
    held: dict[int, int] = dict(connection.execute(in_use).all())
    waiting = {limit_id: (count, since) for limit_id, count, since in connection.execute(queued)}
    return tuple(
        LimitRow(row.key, row.capacity, Source(row.source), held.get(row.id, 0), *waiting.get(row.id, (0, None)))
        for row in connection.execute(chosen)
    )


def snapshot(connection: Connection, now: int) -> Snapshot:
    """Everything live."""
    sessions = tuple(
        SessionRow(
            Session(row.id, row.host, row.deployment, row.pid, row.hostname, row.ttl / 1_000_000), row.expires_at
        )
        for row in connection.execute(select(t.session).order_by(t.session.c.id))
    )
    expiry = {row.session.session_id: row.expires_at for row in sessions}
    return Snapshot(now, limit_rows(connection), claims(connection, LIVE, expiry), sessions)


def probed(connection: Connection) -> tuple[ClaimRow, ...]:
    """The claims that live on while their host says so."""
    return claims(connection, LIVE & (t.claim.c.liveness == Liveness.PROBE.value), {})


def claims(connection: Connection, which: ColumnElement[bool], expiry: Mapping[str, int]) -> tuple[ClaimRow, ...]:
    """These claims in order of their rank; `expiry` says when each session ends, in µs."""
    chosen = select(t.claim.c.id).where(which)
    slots: dict[str, list[HeldSlot]] = defaultdict(list)
    for row in connection.execute(
        select(t.slot.c.claim_id, t.limit.c.key, t.slot.c.n, t.slot.c.epoch)
        .join(t.limit, t.limit.c.id == t.slot.c.limit_id)
        .where(t.slot.c.claim_id.in_(chosen))
        .order_by(t.limit.c.key, t.slot.c.n)
    ):
        slots[row.claim_id].append(HeldSlot(row.key, row.n, row.epoch))
    members: dict[str, list[str]] = defaultdict(list)
    for row in connection.execute(
        select(t.member).where(t.member.c.claim_id.in_(chosen)).order_by(t.member.c.session_id)
    ):
        members[row.claim_id].append(row.session_id)
    found = []
    for row in connection.execute(select(t.claim).where(which).order_by(t.claim.c.rank, t.claim.c.id)):
        session_ids = tuple(members[row.id]) if row.session_id is None else (row.session_id,)
        expires = [expiry[session_id] for session_id in session_ids if session_id in expiry]
        found.append(
            ClaimRow(
                claim=claim_of(row),
                state=ClaimState(row.state),
                wants=row.demands,
                rank=row.rank,
                enqueued_at=row.enqueued_at,
                granted_at=row.granted_at,
                expires_at=row.deadline if row.deadline is not None else max(expires, default=None),
                slots=tuple(slots[row.id]),
                session_ids=session_ids,
                probed=row.liveness == Liveness.PROBE.value,
                observed=bool(row.observed),
                eligible_at=row.eligible_at,
                version=row.version,
            )
        )
    return tuple(found)


def configuration(connection: Connection) -> StoredConfiguration:
    """The configuration in force."""
    c, m = t.configuration.c, t.meta.c
    row = connection.execute(
        select(m.configuration_version, m.settled_version, c.document, c.changed_by, c.changed_from, c.changed_at)
        .select_from(t.meta)
        .outerjoin(t.configuration, c.version == m.configuration_version)
    ).one()
    return StoredConfiguration(
        version=row.configuration_version,
        document=row.document or {},
        changed_by=row.changed_by,
        changed_from=row.changed_from,
        changed_at=row.changed_at,
        settled=row.settled_version == row.configuration_version,
    )


def deployments(connection: Connection) -> tuple[Deployment, ...]:
    """The installations, by host and name."""
    c = t.deployment.c
    rows = connection.execute(select(c.host, c.name, c.fingerprint, c.registered_at)).all()
    return tuple(Deployment(*row) for row in sorted(rows))


def run_lease(connection: Connection, holder_digest: str) -> RunLease | None:
    """The live claim of a run, with what it and its late pools hold."""
    c = t.claim.c
    columns = (c.id, c.state, c.within, c.deadline, c.attempt, c.priority)
    row = connection.execute(select(*columns).where(c.live_holder == holder_digest)).first()
    if row is None:
        return None
    late = select(c.id).where(c.parent_id == row.id, c.kind == ClaimKind.RUN_POOL.value)
    held = connection.execute(
        select(t.limit.c.key, func.count())
        .join_from(t.slot, t.limit)
        .where(or_(t.slot.c.claim_id == row.id, t.slot.c.claim_id.in_(late)))
        .group_by(t.limit.c.key)
    )
    state = ClaimState(row.state)
    return RunLease(row.id, state, dict(held.all()), row.within, row.deadline, row.attempt, row.priority)


def to_touch(cursor: Cursor, claim_ids: Sequence[str]) -> set[str]:
    """Of these waiters those that do not simply go on waiting."""
    waiting = set[str]()
    for start in range(0, len(claim_ids), IDS_AT_ONCE):
        waiting |= {row[0] for row in cursor(WAITING, {}, claim_ids[start : start + IDS_AT_ONCE]).fetchall()}
    return set(claim_ids) - waiting


def reasons(cursor: Cursor, claim_id: str) -> tuple[Reason, ...]:
    """What bars a waiter, by what stands in the rows of its limits; never by a look at all claims."""
    row = cursor(WAITER, {"claim_id": claim_id}).fetchone()
    if row is None:
        return ()
    wants = json.loads(row[0]) if isinstance(row[0], str) else row[0]
    return _reasons(cursor, wants, {"rank": row[1], "claim_id": claim_id})


def reasons_against(cursor: Cursor, wants: Mapping[str, int]) -> tuple[Reason, ...]:
    """What bars a claim that is not in the queue."""
    return _reasons(cursor, wants, None)


def _reasons(cursor: Cursor, wants: Mapping[str, int], place: Mapping[str, object] | None) -> tuple[Reason, ...]:
    found = []
    rows = cursor(OCCUPIED, {}, [digest(key) for key in wants]).fetchall() if wants else []
    for key, limit_id, capacity, held in sorted(rows):
        if capacity is None:
            continue
        here = {"of_limit": limit_id, "most": HOLDERS_SHOWN}
        ahead = cursor(AHEAD, {**here, **place}).fetchone()[0] if place is not None else 0
        if capacity - held < wants[key] or ahead:
            rows_held = cursor(HOLDERS, here).fetchall()
            holders, links = tuple(label_of(*row[:5]) for row in rows_held), tuple(row[5] for row in rows_held)
            found.append(Reason(key, wants[key], capacity, held, holders, ahead, links))
    return tuple(found)


def label_of(host: str, deployment: str, run_id: str | None, op_id: str | None, name: str | None) -> str:
    """`Claim.label` from the columns of a claim."""
    names = (name,) if name else (run_id, op_id)
    return " ".join(part for part in (f"{host}/{deployment}", *names) if part)


def history(connection: Connection, since: int) -> tuple[HistoryRow, ...]:
    """Events from `since` (µs) on, oldest first."""
    lines = select(t.history).where(t.history.c.at >= since).order_by(t.history.c.at, t.history.c.id)
    return history_rows(connection, lines)


def history_rows(connection: Connection, lines: Select[Any]) -> tuple[HistoryRow, ...]:
    """Lines of the history."""
    rows = connection.execute(lines)
    return tuple(
        HistoryRow(
            at=row.at,
            event=Event(row.event),
            claim_id=row.claim_id,
            host=row.host,
            deployment=row.deployment,
            label=row.label,
            slots=row.slots,
            wait_seconds=None if row.waited is None else row.waited / 1_000_000,
            hold_seconds=None if row.held is None else row.held / 1_000_000,
            detail=row.detail,
        )
        for row in rows
    )


def joined(connection: Connection, session_id: str) -> tuple[Claim, ...]:
    """See `Store.joined`: an op's are the session's own, of a run's it is a member. Both are looked up by an index."""
    c = t.claim.c
    own = (c.session_id == session_id) & c.live_holder.is_not(None)
    members = select(t.member.c.claim_id).where(t.member.c.session_id == session_id)
    shared = LIVE & (c.liveness == Liveness.SESSION.value) & c.id.in_(members)
    found = union_all(select(t.claim).where(own), select(t.claim).where(shared)).subquery()
    holds = found.c.state.in_([ClaimState.GRANTED.value, ClaimState.HELD.value])
    return tuple(claim_of(row) for row in connection.execute(select(found).order_by(holds, found.c.id)))


def claim_of(row: t.StoredRow) -> Claim:
    """The claim that a row holds."""
    return Claim(
        kind=ClaimKind(row.kind),
        host=row.host,
        deployment=row.deployment,
        run_id=row.run_id,
        op_id=row.op_id,
        attempt=row.attempt,
        pools=row.pools,
        tags=row.tags,
        priority=row.priority,
        url=row.url,
        in_run=row.in_run,
        parent_id=row.parent_id,
        within=row.within,
        name=row.name,
        claim_id=row.id,
    )
