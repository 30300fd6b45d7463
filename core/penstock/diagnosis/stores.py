"""The store as it stands: reachable, in step with its configuration, with nothing left behind."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from penstock.circles import circles
from penstock.claim import ClaimKind, Liveness
from penstock.config import Concurrency
from penstock.diagnosis.part import Part, State
from penstock.errors import SchemaMismatch
from penstock.host_tags import unmatched_rules
from penstock.report import lasting, rfc3339
from penstock.store.asking import WHY_EXPIRED
from penstock.store.contract import (
    ClaimRow,
    ClaimState,
    Event,
    HistoryRow,
    Session,
    SessionRow,
    Snapshot,
    StoredConfiguration,
)
from penstock.store.sql import SqlStore
from penstock.store.tables import OLDEST, REVISION
from penstock.text import shown

ROUND_TRIPS = 5
CLOCK_SECONDS = 5.0
TICKETS_SECONDS = 3600.0
LEAK_SECONDS = 5.0
"""A claim whose time is over is no leak before the grace and a sweep are over, too."""
UPGRADE = "`penstock db upgrade`"
SWEEP = "`penstock janitor --once` ends it; if it comes again, let a janitor run"


def store_parts(store: SqlStore, source: str) -> Iterator[Part]:
    """Everything about the store, which answers. Raises StoreUnavailable when it stops doing so."""
    server, revision = store.server(), store.schema_revision()
    refused = _refused(store)
    taken, ahead = _timed(store) if refused is None else (0.0, 0.0)
    facts = {"url": store.url, "from": source, "server": server, "schema": revision, "round_trip_seconds": taken}
    where = f"{store.url} (from {source}): {server}"
    if refused is not None:
        newer = revision is not None and revision > REVISION
        detail = f"{where}, schema {revision or 'none'}, this version works with {OLDEST} to {REVISION}"
        yield Part("store", State.FAULT, detail, "upgrade Penstock here" if newer else UPGRADE, facts)
        return
    detail = f"{where}, schema {revision}, {taken * 1000:.1f} ms a round trip"
    yield Part("store", State.OK, detail, facts=facts)
    yield _wakeups(store)
    yield _clock(ahead)
    yield from _configuration(store.configuration())
    yield _installations(store)
    snapshot = store.snapshot()
    yield _sessions(snapshot)
    yield _claims(store, snapshot)
    yield _circles(snapshot)
    yield _tickets(store.history(since=snapshot.now - int(TICKETS_SECONDS * 1_000_000)))


def _refused(store: SqlStore) -> SchemaMismatch | None:
    try:
        store.check_schema()
    except SchemaMismatch as error:
        return error
    return None


def _timed(store: SqlStore) -> tuple[float, float]:
    """The median round trip in seconds, and how far the database's clock is ahead of ours."""
    trips, ahead = [], 0.0
    for _ in range(ROUND_TRIPS):
        began, at = time.perf_counter(), time.time()
        now = store.snapshot_time() / 1_000_000
        trips.append(time.perf_counter() - began)
        ahead = now - (at + time.time()) / 2
    return statistics.median(trips), ahead


def _wakeups(store: SqlStore) -> Part:
    listener = store.listen(None)
    if listener is not None:
        listener.close()
        return Part("wake-ups", State.OK, "LISTEN: waiters hear of grants at once", facts={"by": "listen"})
    kind = store.server().partition(" ")[0]
    why = "a pooler stands before the database" if kind == "PostgreSQL" else f"{kind} cannot notify"
    return Part("wake-ups", State.OK, f"polling, 20 ms to 1 s: {why}", facts={"by": "polling", "why": why})


def _clock(ahead: float) -> Part:
    way = "ahead of" if ahead > 0 else "behind"
    detail = f"the database's clock is {lasting(abs(ahead))} {way} this machine's"
    facts = {"ahead_seconds": round(ahead, 3)}
    if abs(ahead) <= CLOCK_SECONDS:
        return Part("clock", State.OK, detail, facts=facts)
    remedy = "limits go by the database's clock alone, but times in logs will not agree: set both by NTP"
    return Part("clock", State.WARNING, detail, remedy, facts)


def _configuration(stored: StoredConfiguration) -> Iterator[Part]:
    facts = {
        "version": stored.version,
        "changed_by": stored.changed_by,
        "changed_from": stored.changed_from,
        "changed_at": rfc3339(stored.changed_at),
        "settled": stored.settled,
    }
    if stored.version == 0:
        remedy = "`penstock apply FILE`, or `penstock pools set NAME LIMIT`"
        yield Part("configuration", State.INACTIVE, "none yet: nothing is limited", remedy, facts)
        return
    detail = (
        f"version {stored.version}, by {stored.changed_by} from {stored.changed_from} at {rfc3339(stored.changed_at)}"
    )
    if stored.settled:
        yield Part("configuration", State.OK, detail, facts=facts)
    else:
        remedy = "whoever changed it was stopped halfway; `penstock janitor --once` finishes it"
        yield Part("configuration", State.FAULT, f"{detail}, not yet brought to every limit", remedy, facts)
    for block, index, key, why in unmatched_rules(Concurrency.from_document(stored.document)):
        detail = f"concurrency.{block}.tag_concurrency_limits[{index}]: {key!r}: {why}"
        yield Part("rules", State.WARNING, detail, "tag those that are meant, or name a tag that your hosts set")


def _installations(store: SqlStore) -> Part:
    rows = store.deployments()
    facts = {
        "deployments": [
            {
                "host": row.host,
                "deployment": row.name,
                "fingerprint": row.fingerprint,
                "registered_at": rfc3339(row.registered_at),
            }
            for row in rows
        ]
    }
    if not rows:
        detail = "none noted: an installation with an address of its own is, at its first claim"
        return Part("installations", State.INACTIVE, detail, facts=facts)
    known = ", ".join(f"{row.host}/{row.name} ({row.fingerprint})" for row in rows)
    return Part("installations", State.OK, known, facts=facts)


def _sessions(snapshot: Snapshot) -> Part:
    late = [row for row in snapshot.sessions if _left_seconds(row, snapshot) < row.session.ttl_seconds / 3]
    facts = {"live": len(snapshot.sessions), "near_expiry": [row.session.session_id for row in late]}
    if not late:
        return Part("sessions", State.OK, f"{len(snapshot.sessions)} beat in time", facts=facts)
    named = ", ".join(_process(row.session) for row in late[:5])
    detail = f"{len(late)} of {len(snapshot.sessions)} have missed beats: {named}"
    remedy = "look whether that process is stopped, starved or gone; what it holds is freed when its time is over"
    return Part("sessions", State.WARNING, detail, remedy, facts)


def _process(session: Session) -> str:
    return f"{session.host}/{session.deployment} pid {session.pid} on {session.hostname}"


def _left_seconds(row: SessionRow, snapshot: Snapshot) -> float:
    return (row.expires_at - snapshot.now) / 1_000_000


def _claims(store: SqlStore, first: Snapshot) -> Part:
    """Leaks are what two looks find: a claim may end between the reads of one."""
    left, lost = _left_behind(first), _slots_without_claim(first)
    if left or lost:
        time.sleep(0.5)
        again = store.snapshot()
        left = {claim_id: row for claim_id, row in _left_behind(again).items() if claim_id in left}
        lost &= _slots_without_claim(again)
    held = sum(row.state in (ClaimState.HELD, ClaimState.GRANTED) for row in first.claims)
    waiting = sum(row.state in (ClaimState.WAITING, ClaimState.PARKED) for row in first.claims)
    facts = {"leases": held, "waiters": waiting, "left_behind": sorted(left), "slots_without_claim": dict(lost)}
    if not left and not lost:
        return Part("claims", State.OK, f"{held} held, {waiting} waiting, none left behind", facts=facts)
    named = ", ".join([f"{row.claim} ({claim_id})" for claim_id, row in sorted(left.items())][:5])
    slots = ", ".join(f"{count} of {key}" for key, count in sorted(lost.items()))
    parts = [f"{len(left)} without a living process: {named}"] if left else []
    parts += [f"slots that no claim holds: {slots}"] if lost else []
    return Part("claims", State.FAULT, "; ".join(parts), SWEEP, facts)


def _left_behind(snapshot: Snapshot) -> dict[str, ClaimRow]:
    """Claims that nobody stands behind, and that no sweep has ended in time."""
    ids = {row.claim.claim_id for row in snapshot.claims}
    over = snapshot.now - int(LEAK_SECONDS * 1_000_000)
    return {
        row.claim.claim_id: row
        for row in snapshot.claims
        if (
            row.expires_at < over
            if row.expires_at is not None
            else not (row.claim.kind is ClaimKind.RUN_POOL and row.claim.parent_id in ids)
        )
    }


def _slots_without_claim(snapshot: Snapshot) -> Counter[str]:
    held = Counter({row.key: row.held for row in snapshot.limits})
    return held - Counter(slot.limit for row in snapshot.claims for slot in row.slots)


def _circles(snapshot: Snapshot) -> Part:
    found = circles(snapshot)
    facts = {"circles": [[link.waiter.claim.claim_id for link in links] for links in found]}
    if not found:
        return Part("circles", State.OK, "nobody waits for himself through others", facts=facts)
    detail = f"{len(found)} of claims that wait for each other: " + "; ".join(map(str, found[0]))
    remedy = "end one of them: `penstock explain ID`, `penstock free ID`"
    return Part("circles", State.FAULT, detail, remedy, facts)


def _tickets(lately: Sequence[HistoryRow]) -> Part:
    """Slots that were kept for somebody who did not come: they stood idle, and he waits from the end again."""
    late = [row for row in lately if row.event is Event.EXPIRED and row.detail == WHY_EXPIRED[Liveness.TICKET]]
    late = [row for row in late if row.hold_seconds is not None]
    facts = {"given_up": [row.claim_id for row in late]}
    if not late:
        return Part("tickets", State.OK, "in the last hour all who were granted slots came for them", facts=facts)
    named = ", ".join(sorted({shown(row.label or "") for row in late})[:5])
    detail = f"{len(late)} in the last hour were granted slots and did not come for them in time: {named}"
    remedy = "give their host room to start them (its scheduler, workers, own limits), or let fewer wait at once"
    return Part("tickets", State.WARNING, detail, remedy, facts)
