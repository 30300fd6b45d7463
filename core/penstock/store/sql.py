"""The slot store on SQLAlchemy Core: SQLite and PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from penstock.claim import Claim, ClaimKind, Liveness
from penstock.errors import ConfigChanged
from penstock.rules import Demand, Source
from penstock.settings import StoreTimes
from penstock.store import admission, limits, reading, reaping
from penstock.store import tables as t
from penstock.store.admission import Unsettled, digest
from penstock.store.contract import (
    ClaimState,
    Event,
    HistoryRow,
    LimitRow,
    Outcome,
    Owner,
    Result,
    Session,
    Snapshot,
    StoredConfiguration,
)
from penstock.store.database import Database, Transaction

LOOKS = 50
FRUITLESS_LOOKS = 3


class _NoRoom(Exception):
    """Some slot is missing: roll back whatever was marked."""


class SqlStore(Database):
    """See `penstock.store.contract.Store`."""

    def __init__(self, url: str, *, times: StoreTimes | None = None) -> None:
        super().__init__(url, times=times)
        self._jumps = reaping.ClockJumps()

    # -- configuration and limits ------------------------------------------------------------------------------------

    def configuration(self) -> StoredConfiguration:
        with self.transaction(read_only=True) as tx:
            document = tx.connection.scalar(
                select(t.configuration.c.document).where(t.configuration.c.version == tx.version)
            )
            return StoredConfiguration(tx.version, document or {})

    def configuration_is_settled(self) -> bool:
        with self.transaction(read_only=True) as tx:
            return tx.connection.scalar(select(t.meta.c.settled_version)) == tx.version

    def configure(self, document: Mapping[str, Any], *, expected_version: int, by: str, origin: str) -> int:
        with self.transaction() as tx:
            version = expected_version + 1
            written = tx.connection.execute(
                update(t.meta)
                .where(t.meta.c.configuration_version == expected_version)
                .values(configuration_version=version)
            )
            if written.rowcount != 1:
                raise ConfigChanged(
                    f"the configuration was changed by somebody else, version {expected_version} is out of force; "
                    "look again, then repeat"
                )
            row = {"document": dict(document), "changed_at": tx.now, "changed_by": by, "changed_from": origin}
            tx.connection.execute(insert(t.configuration), {"version": version, **row})
            tx.connection.execute(
                insert(t.history),
                {
                    "at": tx.now,
                    "event": Event.CHANGED.value,
                    "slots": {},
                    "detail": f"version {version} by {by} from {origin}",
                },
            )
            return version

    def limit_rows(self) -> tuple[LimitRow, ...]:
        with self.transaction(read_only=True) as tx:
            return reading.limit_rows(tx.connection)

    def settle(self, key: str, capacity: int | None, source: Source, *, version: int) -> bool:
        with self.transaction(grant_lock=True) as tx:
            if tx.version != version:
                return False
            limits.settle(tx.connection, self.dialect, key, capacity, source)
            return True

    def settled(self, version: int) -> None:
        with self.transaction() as tx:
            tx.connection.execute(
                update(t.meta).where(t.meta.c.settled_version < version).values(settled_version=version)
            )

    # -- sessions ----------------------------------------------------------------------------------------------------

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
            tx.connection.execute(insert(t.session), row)

    def beat(self, session_id: str, known: Callable[[], Collection[str]]) -> bool:
        with self.transaction() as tx:
            renewed = tx.connection.execute(
                update(t.session).where(t.session.c.id == session_id).values(expires_at=tx.now + t.session.c.ttl)
            )
            if renewed.rowcount != 1:
                return False
        self._end_session_claims(session_id, known)
        return True

    def close_session(self, session_id: str) -> None:
        with self.transaction() as tx:
            tx.connection.execute(delete(t.session).where(t.session.c.id == session_id))
        self._end_session_claims(session_id, frozenset)
        with self.transaction() as tx:
            tx.connection.execute(delete(t.member).where(t.member.c.session_id == session_id))
        self.sweep()

    def _end_session_claims(self, session_id: str, known: Callable[[], Collection[str]]) -> None:
        with self.transaction(read_only=True) as tx:
            mine = tx.connection.scalars(select(t.claim.c.id).where(t.claim.c.session_id == session_id)).all()
        for claim_id in set(mine) - set(known()):
            self.release(claim_id, session_id)

    # -- claims ------------------------------------------------------------------------------------------------------

    def acquire(
        self,
        claim: Claim,
        demands: Sequence[Demand],
        *,
        version: int,
        owner: Owner,
        wait: bool,
        eligible_after_seconds: float = 0.0,
    ) -> Outcome:
        while True:
            try:
                return self._acquire(claim, demands, version, owner, wait, int(eligible_after_seconds * 1_000_000))
            except Unsettled as unsettled:
                for demand in unsettled.demands:  # in the one order of keys, each in a transaction of its own
                    if not self.settle(demand.key, demand.capacity, demand.source, version=version):
                        return Outcome(Result.STALE, claim.claim_id)

    def _acquire(
        self, claim: Claim, demands: Sequence[Demand], version: int, owner: Owner, wait: bool, eligible_after: int
    ) -> Outcome:
        if not eligible_after:
            outcome = self._attempt(claim, demands, version, owner)
            if outcome.result is not Result.NO_ROOM:
                return outcome
        if not wait:
            return self._attempt(claim, demands, version, owner, decide=True)
        with self.transaction() as tx:
            if (refused := self._refused(tx, claim.claim_id, version, owner)) is not None:
                return refused
            ids = admission.limit_ids(tx.connection, demands)
            written = admission.write_claim(
                tx.connection,
                self.dialect,
                claim,
                demands,
                owner,
                state=ClaimState.WAITING,
                version=version,
                now=tx.now,
                eligible_at=tx.now + eligible_after,
            )
            if written:
                wanted = {demand.key: demand.slots for demand in demands}
                admission.queue(tx.connection, claim.claim_id, admission.rank(tx.now, claim.priority), wanted, ids)
        if not written:
            return self._join(claim, demands, version, owner)
        # The place in the queue is committed; only then look, in new snapshots, or a wake-up could be lost.
        return self.touch(claim.claim_id, demands, version=version, owner=owner)

    def _attempt(
        self, claim: Claim, demands: Sequence[Demand], version: int, owner: Owner, *, decide: bool = False
    ) -> Outcome:
        """Admit the claim now or leave nothing. `decide`: under the grant lock, exact, waiting for locked rows."""
        wanted = {demand.key: demand.slots for demand in demands}
        unlimited = frozenset(demand.key for demand in demands if demand.capacity is None)
        try:
            with self.transaction(grant_lock=decide) as tx:
                if (refused := self._refused(tx, claim.claim_id, version, owner)) is not None:
                    return refused
                ids = admission.limit_ids(tx.connection, demands)
                if decide:
                    limits.settle_drained(tx.connection, self.dialect)
                    while admission.grant(tx.connection, self.dialect, tx.now, version):
                        pass
                elif admission.others_ahead(tx.connection, claim.claim_id, admission.rank(tx.now, claim.priority), ids):
                    return Outcome(Result.NO_ROOM, claim.claim_id)
                written = admission.write_claim(
                    tx.connection,
                    self.dialect,
                    claim,
                    demands,
                    owner,
                    state=ClaimState.HELD,
                    version=version,
                    now=tx.now,
                    eligible_at=tx.now,
                )
                if written:
                    with tx.connection.begin_nested() as savepoint:
                        slots = admission.take_slots(
                            tx.connection, self.dialect, claim.claim_id, wanted, ids, unlimited, skip_locked=not decide
                        )
                        if slots is None:
                            savepoint.rollback()
                            raise _NoRoom
                    row = self._claim_row(tx.connection, claim.claim_id)
                    admission.record(tx.connection, Event.GRANTED, row, tx.now, waited=0)
                    return Outcome(Result.HELD, claim.claim_id, slots)
        except _NoRoom:
            return Outcome(Result.NO_ROOM, claim.claim_id)
        joined = self._join(claim, demands, version, owner)
        if decide and joined.result is Result.WAITING:
            return Outcome(Result.NO_ROOM, claim.claim_id)
        return joined

    def _refused(self, tx: Transaction, claim_id: str, version: int, owner: Owner) -> Outcome | None:
        if tx.version != version:
            return Outcome(Result.STALE, claim_id)
        if owner.session_id is not None:
            alive = select(t.session.c.id).where(t.session.c.id == owner.session_id)
            if tx.connection.execute(alive).first() is None:
                return Outcome(Result.SESSION_LOST, claim_id)
        return None

    def _join(self, claim: Claim, demands: Sequence[Demand], version: int, owner: Owner) -> Outcome:
        """The id was used before, or the same holder has a live claim: go on with that one."""
        with self.transaction(read_only=True) as tx:
            ids = select(t.claim.c.id)
            claim_id = tx.connection.scalar(ids.where(t.claim.c.id == claim.claim_id))
            if claim_id is None and claim.holder is not None:
                claim_id = tx.connection.scalar(ids.where(t.claim.c.live_holder == digest(claim.holder)))
        if claim_id is None:  # it ended just now
            return Outcome(Result.STALE, claim.claim_id)
        return self.touch(claim_id, demands, version=version, owner=owner)

    def touch(self, claim_id: str, demands: Sequence[Demand], *, version: int, owner: Owner) -> Outcome:
        while True:
            try:
                outcome = self._touch(claim_id, demands, version, owner)
            except Unsettled as unsettled:
                for demand in unsettled.demands:
                    if not self.settle(demand.key, demand.capacity, demand.source, version=version):
                        return Outcome(Result.STALE, claim_id)
                continue
            if outcome.result is Result.WAITING and self.grant_pass():
                continue
            return outcome

    def _touch(self, claim_id: str, demands: Sequence[Demand], version: int, owner: Owner) -> Outcome:
        with self.transaction() as tx:
            row = self._claim_row(tx.connection, claim_id, lock=True)
            if row is None or row.state == ClaimState.ENDED.value:
                expired = row is not None and row.outcome == Event.EXPIRED.value and owner.session_id is not None
                return Outcome(Result.SESSION_LOST if expired else Result.ENDED, claim_id)
            if row.session_id is not None and row.session_id != owner.session_id:
                return Outcome(Result.BUSY, claim_id)
            waiting = row.state in (ClaimState.WAITING.value, ClaimState.PARKED.value)
            if waiting and (refused := self._refused(tx, claim_id, version, owner)) is not None:
                return refused
            kind = ClaimKind(row.kind)
            values = admission.ownership(kind, owner, tx.now, held=not waiting)
            admission.join_run(tx.connection, self.dialect, kind, claim_id, owner)
            if waiting:
                if row.state == ClaimState.PARKED.value or row.version != version:
                    wanted = {demand.key: demand.slots for demand in demands}
                    admission.queue(
                        tx.connection, claim_id, row.rank, wanted, admission.limit_ids(tx.connection, demands)
                    )
                    values |= {"demands": wanted, "version": version}
                values["state"] = ClaimState.WAITING.value
            else:
                adopted = row.liveness == Liveness.TICKET.value and values["liveness"] == Liveness.SESSION.value
                if adopted and row.state == ClaimState.HELD.value:
                    admission.renew_epochs(tx.connection, self.dialect, claim_id)
                if row.state == ClaimState.GRANTED.value:
                    values["acknowledged_at"] = tx.now
                values["state"] = ClaimState.HELD.value
            tx.connection.execute(update(t.claim).where(t.claim.c.id == claim_id).values(values))
            if waiting:
                return Outcome(Result.WAITING, claim_id)
            return Outcome(Result.HELD, claim_id, admission.slots_of(tx.connection, claim_id))

    def hand_over(
        self, claim_id: str, session_id: str, *, ticket_seconds: float, eligible_after_seconds: float = 0.0
    ) -> bool:
        with self.transaction() as tx:
            row = self._claim_row(tx.connection, claim_id, lock=True)
            if row is None or row.session_id != session_id:
                return False
            values = {
                "session_id": None,
                "liveness": Liveness.TICKET.value,
                "deadline": tx.now + int(ticket_seconds * 1_000_000),
                "eligible_at": max(row.eligible_at, tx.now + int(eligible_after_seconds * 1_000_000)),
            }
            tx.connection.execute(update(t.claim).where(t.claim.c.id == claim_id).values(values))
            return True

    def release(self, claim_id: str, session_id: str | None) -> bool:
        with self.transaction() as tx:
            row = self._claim_row(tx.connection, claim_id, lock=True)
            if row is None or row.state == ClaimState.ENDED.value:
                return False
            if row.kind == ClaimKind.OP.value and row.session_id != session_id:
                return False  # another's by now, or handed over
            if row.kind == ClaimKind.RUN.value and row.liveness == Liveness.SESSION.value:
                mine = (t.member.c.claim_id == claim_id) & (t.member.c.session_id == session_id)
                tx.connection.execute(delete(t.member).where(mine))
                if tx.connection.execute(select(t.member).where(t.member.c.claim_id == claim_id)).first() is not None:
                    return True
            held = row.state in (ClaimState.GRANTED.value, ClaimState.HELD.value)
            admission.end_claim(tx.connection, row, Event.RELEASED if held else Event.WITHDRAWN, tx.now)
        # Committed; only now look for waiters, in a new snapshot.
        self.grant_pass()
        return True

    def end(self, claim_id: str, *, reason: str) -> bool:
        with self.transaction() as tx:
            row = self._claim_row(tx.connection, claim_id, lock=True)
            if row is None or row.state == ClaimState.ENDED.value:
                return False
            held = row.state in (ClaimState.GRANTED.value, ClaimState.HELD.value)
            admission.end_claim(tx.connection, row, Event.RELEASED if held else Event.WITHDRAWN, tx.now, reason)
        self.grant_pass()
        return True

    def live_claim(self, holder: str) -> str | None:
        with self.transaction(read_only=True) as tx:
            claim_id: str | None = tx.connection.scalar(
                select(t.claim.c.id).where(t.claim.c.live_holder == digest(holder))
            )
            return claim_id

    # -- granting and upkeep -----------------------------------------------------------------------------------------

    def grant_pass(self) -> int:
        granted = fruitless = 0
        for _ in range(LOOKS):
            with self.transaction(read_only=True) as tx:
                work = admission.grantable(tx.connection, tx.now, tx.version) or limits.drained(tx.connection)
            if not work:
                break
            batch = self._grant_batch()
            if batch is None:  # somebody else has the lock; they look again after they let it go
                break
            granted += batch
            fruitless = 0 if batch else fruitless + 1
            if fruitless >= FRUITLESS_LOOKS:  # a plain read does not see row locks: give those a moment
                time.sleep(0.005 + 0.005 * (fruitless % 4))
        return granted

    def _grant_batch(self) -> int | None:
        with self.transaction() as tx:
            if not self.dialect.try_grant_lock(tx.connection):
                return None
            limits.settle_drained(tx.connection, self.dialect)
            return admission.grant(tx.connection, self.dialect, tx.now, tx.version)

    def sweep(self) -> None:
        with self.transaction(read_only=True) as tx:
            jumped = self._jumps.seen(tx.now)
            work = jumped or reaping.due(tx.connection, tx.now, self.times)
        if work:
            with self.transaction() as tx:
                if not self.dialect.try_grant_lock(tx.connection):
                    return
                if jumped:
                    reaping.extend_all(tx.connection)
                else:
                    reaping.reap(tx.connection, tx.now, self.times)
        self.grant_pass()

    # -- reading -----------------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        with self.transaction(read_only=True) as tx:
            return reading.snapshot(tx.connection, tx.now)

    def history(self, *, since: int = 0) -> tuple[HistoryRow, ...]:
        with self.transaction(read_only=True) as tx:
            return reading.history(tx.connection, since)

    def _claim_row(self, connection: Connection, claim_id: str, *, lock: bool = False) -> t.StoredRow:
        statement = select(t.claim).where(t.claim.c.id == claim_id)
        row: Any = connection.execute(statement.with_for_update() if lock else statement).first()
        return row

    def after_fork(self) -> None:
        self._engine.dispose(close=False)
        self._jumps = reaping.ClockJumps()

    def close(self) -> None:
        self._engine.dispose()
