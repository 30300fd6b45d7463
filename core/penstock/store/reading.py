"""What is in the store, as plain values."""

from __future__ import annotations

from collections import defaultdict

from sqlalchemy import Connection, func, select

from penstock.claim import Claim, ClaimKind, Liveness
from penstock.decision import HeldSlot
from penstock.rules import Source
from penstock.store import tables as t
from penstock.store.contract import (
    ClaimRow,
    ClaimState,
    Event,
    HistoryRow,
    LimitRow,
    Session,
    SessionRow,
    Snapshot,
)


def limit_rows(connection: Connection) -> tuple[LimitRow, ...]:
    """Every limit with what is held and waiting, by key."""
    in_use = select(t.slot.c.limit_id, func.count()).where(t.slot.c.claim_id.is_not(None)).group_by(t.slot.c.limit_id)
    queued = select(t.waiter.c.limit_id, func.count()).group_by(t.waiter.c.limit_id)
    held: dict[int, int] = dict(connection.execute(in_use).all())
    waiting: dict[int, int] = dict(connection.execute(queued).all())
    rows = connection.execute(select(t.limit).order_by(t.limit.c.key)).all()
    return tuple(
        LimitRow(row.key, row.capacity, Source(row.source), held.get(row.id, 0), waiting.get(row.id, 0)) for row in rows
    )


def snapshot(connection: Connection, now: int) -> Snapshot:
    """Everything live."""
    slots: dict[str, list[HeldSlot]] = defaultdict(list)
    for row in connection.execute(
        select(t.slot.c.claim_id, t.limit.c.key, t.slot.c.n, t.slot.c.epoch)
        .join(t.limit, t.limit.c.id == t.slot.c.limit_id)
        .where(t.slot.c.claim_id.is_not(None))
        .order_by(t.limit.c.key, t.slot.c.n)
    ):
        slots[row.claim_id].append(HeldSlot(row.key, row.n, row.epoch))
    sessions = tuple(
        SessionRow(
            Session(row.id, row.host, row.deployment, row.pid, row.hostname, row.ttl / 1_000_000), row.expires_at
        )
        for row in connection.execute(select(t.session).order_by(t.session.c.id))
    )
    expiry = {row.session.session_id: row.expires_at for row in sessions}
    members: dict[str, list[str]] = defaultdict(list)
    for row in connection.execute(select(t.member).order_by(t.member.c.session_id)):
        members[row.claim_id].append(row.session_id)
    claims = []
    for row in connection.execute(
        select(t.claim).where(t.claim.c.state != ClaimState.ENDED.value).order_by(t.claim.c.rank, t.claim.c.id)
    ):
        session_ids = tuple(members[row.id]) if row.session_id is None else (row.session_id,)
        expires = [expiry[session_id] for session_id in session_ids if session_id in expiry]
        claims.append(
            ClaimRow(
                claim=_claim(row),
                state=ClaimState(row.state),
                wants=row.demands,
                rank=row.rank,
                enqueued_at=row.enqueued_at,
                granted_at=row.granted_at,
                expires_at=row.deadline if row.deadline is not None else max(expires, default=None),
                slots=tuple(slots[row.id]),
                session_ids=session_ids,
                probed=row.liveness == Liveness.PROBE.value,
            )
        )
    return Snapshot(now, limit_rows(connection), tuple(claims), sessions)


def history(connection: Connection, since: int) -> tuple[HistoryRow, ...]:
    """Events from `since` (µs) on, oldest first."""
    rows = connection.execute(select(t.history).where(t.history.c.at >= since).order_by(t.history.c.at, t.history.c.id))
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


def _claim(row: t.StoredRow) -> Claim:
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
        claim_id=row.id,
    )
