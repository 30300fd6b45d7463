"""The slot store on SQLAlchemy Core: SQLite, PostgreSQL, MariaDB and MySQL."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, delete, select, union, update

from penstock.claim import Claim, Liveness
from penstock.decision import Reason
from penstock.errors import StoreUnavailable
from penstock.rules import Demand
from penstock.settings import StoreTimes
from penstock.store import admission, deciding, granting, limits, reading, reaping, touching
from penstock.store import tables as t
from penstock.store.admission import Unsettled
from penstock.store.asking import Ask, no_room_again
from penstock.store.contract import (
    ClaimRow,
    ClaimState,
    Event,
    Expired,
    HistoryRow,
    Listener,
    Mode,
    Outcome,
    Owner,
    Result,
    RunLease,
    Session,
    Snapshot,
    Swept,
)
from penstock.store.database import Transaction, again_if_cut_off, again_if_undone
from penstock.store.digests import digest
from penstock.store.upkeep import Upkeep

log = logging.getLogger("penstock.store")
LOOKS, UPKEEP_LOOKS = 50, 10
"""Of one pass at most; the latter where beats would have to wait for it, however many come and go meanwhile."""
FRUITLESS_LOOKS = 3


class SqlStore(Upkeep):
    """See `penstock.store.contract.Store`."""

    def __init__(self, url: str, *, times: StoreTimes | None = None, create: bool = True) -> None:
        super().__init__(url, times=times, create=create)
        self.on_granted: list[Callable[[Collection[str]], None]] = []

    # -- sessions ----------------------------------------------------------------------------------------------------

    @again_if_undone
    def open_session(self, session: Session) -> None:
        ttl = int(session.ttl_seconds * 1_000_000)
        with self.transaction() as tx:
            row = {
                "id": session.session_id,
                "host": session.host,
                "deployment": session.deployment,
                "pid": session.pid,
                "hostname": session.hostname,
                "ttl": ttl,
                "expires_at": tx.now + ttl,
            }
            self.dialect.insert_if_absent(tx.connection, t.session, row)  # a try that was cut off may have done it

    @again_if_undone
    def beat(self, session_id: str, known: Callable[[], Collection[str]]) -> bool:
        with self.transaction() as tx:
            renewed = tx.connection.execute(
                update(t.session).where(t.session.c.id == session_id).values(expires_at=tx.now + t.session.c.ttl)
            )
            if renewed.rowcount != 1:
                return False
        with self.transaction(read_only=True) as tx:
            # One with a holder could be joined before it is ended here: the process sees to those itself.
            unnamed = t.claim.c.live_holder.is_(None)
            mine = self._in_order_of_leaving(tx, (t.claim.c.session_id == session_id) & unnamed)
        there = known()
        for claim_id in mine:
            if claim_id not in there:
                self.release(claim_id, session_id)
        return True

    @again_if_undone
    def joined(self, session_id: str) -> tuple[Claim, ...]:
        with self.transaction(read_only=True) as tx:
            return reading.joined(tx.connection, session_id)

    @again_if_undone
    def close_session(self, session_id: str) -> None:
        m = t.member.c
        joined = select(m.claim_id).where(m.session_id == session_id)
        with self.transaction() as tx:
            tx.connection.execute(delete(t.session).where(t.session.c.id == session_id))
            mine = self._in_order_of_leaving(tx, t.claim.c.session_id == session_id, t.claim.c.id.in_(joined))
        for claim_id in mine:
            self.release(claim_id, session_id)
        with self.transaction() as tx:
            tx.connection.execute(delete(t.member).where(m.session_id == session_id))

    def _in_order_of_leaving(self, tx: Transaction, *ways: ColumnElement[bool]) -> Sequence[str]:
        """Those that wait first: none of them is granted what the others leave. Each way is looked up by an index."""
        c = t.claim.c
        holds = c.state.in_([ClaimState.GRANTED.value, ClaimState.HELD.value]).label("holds")
        found = union(*(select(c.id, holds).where(way) for way in ways)).subquery()
        return tx.connection.scalars(select(found.c.id).order_by(found.c.holds, found.c.id)).all()

    # -- claims ------------------------------------------------------------------------------------------------------

    @again_if_undone
    def acquire(
        self,
        claim: Claim,
        demands: Sequence[Demand],
        *,
        version: int,
        owner: Owner,
        mode: Mode = Mode.WAIT,
        eligible_after_seconds: float = 0.0,
    ) -> Outcome:
        ask = Ask(
            claim=claim,
            demands=tuple(demands),
            version=version,
            owner=owner,
            wait=mode is Mode.WAIT,
            eligible_after=int(eligible_after_seconds * 1_000_000) if demands else 0,
            clock_shift=self.clock_shift,
        )
        while True:
            with self.cursor() as cursor:
                answer = self.dialect.acquire(cursor, ask)
            if answer.version != version:
                return Outcome(Result.STALE, claim.claim_id)
            if not answer.alive:
                return Outcome(Result.SESSION_LOST, claim.claim_id)
            if answer.settled == len(demands):
                break
            if not self._settle(demands, version):
                return Outcome(Result.STALE, claim.claim_id)
        if answer.state is ClaimState.HELD:
            return Outcome(Result.HELD, claim.claim_id, answer.slots)
        if answer.state is ClaimState.WAITING:
            # The place in the queue is committed; only then look, in new snapshots, or a wake-up could be lost.
            if claim.claim_id in self._look_after_commit():
                return self.touch(claim.claim_id, demands, version=version, owner=owner)
            return Outcome(Result.WAITING, claim.claim_id)
        return self._join(ask, mode) if mode is Mode.WAIT else self._decide(ask, mode)

    def _settle(self, demands: Sequence[Demand], version: int) -> bool:
        """Make what is missing or has another capacity; in the one order of keys, each in a transaction of its own."""
        with self.transaction(read_only=True) as tx:
            try:
                admission.limit_ids(tx.connection, demands)
                return True
            except Unsettled as unsettled:
                wrong = unsettled.demands
        return all(self.settle(d.key, d.capacity, d.source, version=version) for d in sorted(wrong))

    def _decide(self, ask: Ask, mode: Mode) -> Outcome:
        """Exactly: under the grant lock, after everybody who waits and fits, waiting for rows that are locked."""
        claim, granted = ask.claim, list[str]()
        try:
            with self.transaction(grant_lock=True) as tx:
                if tx.version != ask.version:
                    return Outcome(Result.STALE, claim.claim_id)
                limits.settle_drained(tx.connection)
                outcome = deciding.decide(tx, self.dialect, ask, mode, granted)
        except Unsettled:
            return self.acquire(claim, ask.demands, version=ask.version, owner=ask.owner, mode=mode)
        self._tell(granted)
        return outcome if outcome is not None else self._join(ask, mode)

    def _join(self, ask: Ask, mode: Mode) -> Outcome:
        """The id was used before, or the same holder has a live claim: go on with that one."""
        claim = ask.claim
        with self.transaction(read_only=True) as tx:
            ids = select(t.claim.c.id)
            claim_id = tx.connection.scalar(ids.where(t.claim.c.id == claim.claim_id))
            if claim_id is None and claim.holder is not None:
                claim_id = tx.connection.scalar(ids.where(t.claim.c.live_holder == digest(claim.holder)))
        if claim_id is None:  # it ended just now
            return Outcome(Result.STALE, claim.claim_id)
        outcome = self.touch(claim_id, ask.demands, version=ask.version, owner=ask.owner)
        return no_room_again(outcome, claim, mode)

    @again_if_undone
    def touch(self, claim_id: str, demands: Sequence[Demand], *, version: int, owner: Owner) -> Outcome:
        if owner.session_id is not None and owner.probe_seconds is None:
            with self.cursor() as cursor:
                slots = self.dialect.acknowledge(cursor, claim_id, owner.session_id, shift=self.clock_shift)
            if slots is not None:
                return Outcome(Result.HELD, claim_id, slots)
        while True:
            try:
                with self.transaction() as tx:
                    outcome = touching.touch(tx, self.dialect, claim_id, demands, version, owner)
            except Unsettled:
                if not self._settle(demands, version):
                    return Outcome(Result.STALE, claim_id)
                continue
            if outcome.result is Result.WAITING and claim_id in self._look_after_commit():
                continue
            return outcome

    @again_if_undone
    def renew(self, claim_ids: Sequence[str], *, ticket_seconds: float) -> set[str]:
        with self.transaction() as tx:
            return touching.renew(tx, claim_ids, ticket_seconds)

    @again_if_cut_off
    def hand_over(
        self,
        cut_off: bool,
        claim_id: str,
        session_id: str,
        *,
        ticket_seconds: float,
        eligible_after_seconds: float = 0.0,
    ) -> bool:
        with self.transaction() as tx:
            row = admission.claim_row(tx.connection, claim_id, lock=True)
            if row is None:
                return False
            if not touching.hand_over(tx.connection, row, session_id):
                return cut_off and touching.is_ticket(row)
            values = {
                "session_id": None,
                "liveness": Liveness.TICKET.value,
                "deadline": tx.now + int(ticket_seconds * 1_000_000),
                "eligible_at": max(row.eligible_at, tx.now + int(eligible_after_seconds * 1_000_000)),
            }
            tx.connection.execute(update(t.claim).where(t.claim.c.id == claim_id).values(values))
            return True

    @again_if_cut_off
    def release(self, cut_off: bool, claim_id: str, session_id: str | None, *, unless_held: bool = False) -> bool:
        if session_id is not None and not unless_held:
            with self.cursor() as cursor:
                done, found = self.dialect.release(cursor, claim_id, session_id, shift=self.clock_shift)
            if found:
                self._look_after_commit(found=True)
            if done:
                return True
        with self.transaction() as tx:
            row = admission.claim_row(tx.connection, claim_id, lock=True)
            if row is None and self._bury(tx, claim_id):
                return False
            if row is None:  # its acquire came through just now
                row = admission.claim_row(tx.connection, claim_id, lock=True)
            if row.state == ClaimState.ENDED.value:
                if not _had_come_through(row, cut_off=cut_off):
                    return False
            elif (unless_held and row.state == ClaimState.HELD.value) or not touching.leave(
                tx.connection, row, session_id
            ):
                return False
            elif not touching.is_last(tx.connection, row):
                return True
            else:
                held = row.state in (ClaimState.GRANTED.value, ClaimState.HELD.value)
                admission.end_claim(tx.connection, row, Event.RELEASED if held else Event.WITHDRAWN, tx.now)
        self._look_after_commit()
        return True

    def _look_after_commit(self, *, found: bool = False) -> set[str]:
        """Only after the commit look for waiters, in a new snapshot: who was granted. What was committed stands if that
        fails.
        """
        try:
            return self._grant(found=found)
        except StoreUnavailable as error:
            log.warning("slots are free, but nobody could be granted them now; the next look does: %s", error)
            return set()

    def _bury(self, tx: Transaction, claim_id: str) -> bool:
        """A release that came before its acquire: the id is a tombstone, so that the late acquire is never granted."""
        return self.dialect.insert_if_absent(tx.connection, t.claim, admission.tombstone(claim_id, tx.now))

    @again_if_cut_off
    def end(self, cut_off: bool, claim_id: str, *, reason: str, expires_at: int | None = None) -> bool:
        with self.transaction() as tx:
            row = admission.claim_row(tx.connection, claim_id, lock=True)
            if row is not None and row.state == ClaimState.ENDED.value:
                if not _had_come_through(row, cut_off=cut_off):
                    return False
            elif row is None or expires_at not in (None, row.deadline):
                return False
            else:
                held = row.state in (ClaimState.GRANTED.value, ClaimState.HELD.value)
                admission.end_claim(tx.connection, row, Event.RELEASED if held else Event.WITHDRAWN, tx.now, reason)
        self._look_after_commit()
        return True

    # -- granting and upkeep -----------------------------------------------------------------------------------------

    def grant_pass(self) -> int:
        return len(self._grant())

    @again_if_undone
    def _grant(self, *, found: bool = False) -> set[str]:
        """Try the grant lock; on success grant until nothing is left. Who was granted. `found`: a look said so."""
        granted, fruitless = set[str](), 0
        for _ in range(UPKEEP_LOOKS if self.upkeep else LOOKS):
            with self.cursor() as cursor:
                found = found or self.dialect.look(cursor)
                at_once: list[str] | None = []
                if found:
                    at_once, found = self.dialect.grant_simple(cursor, shift=self.clock_shift)
            if at_once:
                granted.update(at_once)
                self._wake(at_once)
                fruitless = 0
            if at_once is None or not found:  # somebody else has the lock; they look again after they let it go
                break
            if at_once:
                continue
            found = False
            batch = self._grant_batch()
            if batch is None:  # somebody else has the lock; they look again after they let it go
                break
            granted.update(batch.granted)
            self._tell(batch.granted)
            if not batch.granted and not batch.contested and not self._fit_by_now() - batch.weighed:
                break  # those who wait there are barred elsewhere
            fruitless = 0 if batch.granted else fruitless + 1
            if fruitless >= FRUITLESS_LOOKS:  # what was contested is in somebody's hands: give them a moment
                time.sleep(0.005 + 0.005 * (fruitless % 4))
        return granted

    @again_if_undone
    def _grant_batch(self) -> granting.Batch | None:
        with self.transaction() as tx:
            if not self.dialect.try_grant_lock(tx.connection):
                return None
            limits.settle_drained(tx.connection)
            return granting.grant(tx.cursor, self.clock_shift)

    @again_if_undone
    def _fit_by_now(self) -> set[str]:
        """Whoever released while a pass was under way found the lock taken, and left the look to that pass."""
        with self.transaction(read_only=True) as tx:
            return granting.fit_by_now(tx.cursor, self.clock_shift)

    def _tell(self, granted: Collection[str]) -> None:
        """Wake those that were granted, in other processes too, after the commit, which stands if that fails."""
        if granted:
            self._wake(granted)
            try:
                with self.cursor() as cursor:
                    self.dialect.notify(cursor, granted)
            except StoreUnavailable as error:
                log.warning("who was granted a slot in another process finds it at its next poll only: %s", error)

    def _wake(self, granted: Collection[str]) -> None:
        for tell in list(self.on_granted):
            tell(granted)

    def sweep(self) -> Swept:
        swept, jumped, work = self._look_for_dead()
        expired: dict[str, Expired] = {}
        if jumped or work:
            self._reap(expired, jumped=jumped)
        self._look_after_commit()
        return replace(swept, expired=tuple(expired.values()))

    def listen(self, session_id: str | None) -> Listener | None:
        return self.dialect.listen(self._given, self._engine, session_id)

    # -- reading -----------------------------------------------------------------------------------------------------

    @again_if_undone
    def run_lease(self, holder: str) -> RunLease | None:
        with self.transaction(read_only=True) as tx:
            return reading.run_lease(tx.connection, digest(holder))

    @again_if_undone
    def to_touch(self, claim_ids: Sequence[str]) -> set[str]:
        with self.transaction(read_only=True) as tx:
            return reading.to_touch(tx.cursor, claim_ids)

    @again_if_undone
    def reasons(self, claim_id: str) -> tuple[Reason, ...]:
        with self.transaction(read_only=True) as tx:
            return reading.reasons(tx.cursor, claim_id)

    @again_if_undone
    def reasons_against(self, wants: Mapping[str, int]) -> tuple[Reason, ...]:
        with self.transaction(read_only=True) as tx:
            return reading.reasons_against(tx.cursor, wants)

    @again_if_undone
    def snapshot_time(self) -> int:
        with self.transaction(read_only=True) as tx:
            return tx.now

    @again_if_undone
    def snapshot(self) -> Snapshot:
        with self.transaction(read_only=True) as tx:
            return reading.snapshot(tx.connection, tx.now)

    @again_if_undone
    def probed(self) -> tuple[ClaimRow, ...]:
        with self.transaction(read_only=True) as tx:
            return reading.probed(tx.connection)

    @again_if_undone
    def history(self, *, since: int = 0) -> tuple[HistoryRow, ...]:
        with self.transaction(read_only=True) as tx:
            return reading.history(tx.connection, since)

    def after_fork(self) -> None:
        for engine in (self._engine, self._upkeep_engine):
            engine.dispose(close=False)
        self._thread = threading.local()
        self._jumps = reaping.ClockJumps()

    def close(self) -> None:
        self._dispose()


def _had_come_through(row: Any, *, cut_off: bool) -> bool:
    """Whether a try that was cut off has ended this claim: it looked for nobody who waits, the next one does."""
    return bool(cut_off and row.outcome != Event.EXPIRED.value)
