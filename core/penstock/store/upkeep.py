"""What an SQL store drops by and by: what nobody stands behind any more, old history, idle limits."""

from __future__ import annotations

from sqlalchemy import func, select

from penstock.settings import StoreTimes
from penstock.store import limits, reaping
from penstock.store import tables as t
from penstock.store.contract import Expired, Swept
from penstock.store.database import again_if_cut_off, again_if_undone
from penstock.store.views import Views


class Upkeep(Views):
    """Its part of `penstock.store.contract.Store`; a sweep also grants, so it stands with the grants."""

    def __init__(self, url: str, *, times: StoreTimes | None = None, create: bool = True) -> None:
        super().__init__(url, times=times, create=create)
        self._jumps = reaping.ClockJumps()

    @again_if_undone
    def _look_for_dead(self) -> tuple[Swept, bool, bool]:
        """How the store stands, whether its clock has jumped, and whether there is anything to reap."""
        with self.transaction(read_only=True) as tx:
            sessions = select(func.count()).select_from(t.session).scalar_subquery()
            settled = t.meta.c.settled_version == t.meta.c.configuration_version
            facts = tx.connection.execute(select(settled, sessions, reaping.shortest_ttl())).one()
            jumped = self._jumps.seen(lambda: tx.now, facts[2])
            work = reaping.due(tx.connection, tx.now, self.times)
            if not jumped and not work:
                self._jumps.clean_at = tx.now
        return Swept(bool(facts[0]), sessions=facts[1]), jumped, work

    @again_if_cut_off
    def _reap(self, cut_off: bool, expired: dict[str, Expired], *, jumped: bool) -> None:
        """Reap unless somebody else does; what has expired is added to `expired`."""
        with self.transaction() as tx:
            if cut_off:  # those that the try before has ended all the same
                for claim_id in expired.keys() - reaping.have_expired(tx.connection, list(expired)):
                    del expired[claim_id]
            if not self.dialect.try_grant_lock(tx.connection):
                return
            ttl = tx.connection.scalar(select(reaping.shortest_ttl()))
            jumped = self._jumps.seen(lambda: tx.now, ttl) or jumped  # it may have been set since the look
            if jumped:
                reaping.extend_all(tx.connection, tx.now)
            else:
                reaping.give_time(tx.connection, tx.now, self._jumps.clean_at, self.times)
                for one in reaping.reap(tx.connection, tx.now, self.times):
                    expired[one.claim.claim_id] = one
        if jumped:
            self._jumps.borne()

    @again_if_undone
    def prune(self, *, history_before: int, idle_before: int) -> dict[str, int]:
        rows = idle = 0
        more = True
        while more:  # a little at a time: nobody waits long for what one transaction has locked
            with self.transaction() as tx:
                dropped = reaping.prune_history(tx.connection, history_before)
            rows, more = rows + dropped, dropped == reaping.PRUNED
        for limit_id in self._idle_limits(idle_before):
            with self.transaction(grant_lock=True) as tx:
                idle += limits.collect(tx.connection, limit_id)
        return {"history": rows, "limits": idle}

    def _idle_limits(self, before: int) -> list[int]:
        with self.transaction(read_only=True) as tx:
            return limits.idle(tx.connection, before)
