"""What this process answers for: the leases it holds, and the claims on their way to one."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING
from weakref import WeakSet, WeakValueDictionary

from penstock.errors import LeaseLost

if TYPE_CHECKING:
    import pluggy

    from penstock.claim import Claim
    from penstock.lease import Lease
    from penstock.store.contract import Store

log = logging.getLogger("penstock.engine")


class Leases:
    """One process's, for all its threads. What is not in here, the next beat of the process's session ends."""

    def __init__(self, store: Store, hook: pluggy.HookRelay) -> None:
        self._store, self._hook = store, hook
        self._lock = threading.RLock()
        self._held: dict[str, Lease] = {}
        self._held_by: dict[str, Lease] = {}  # those of `_held` by their holder
        self._requested: dict[
            str, WeakSet[object]
        ] = {}  # claim → who here asks for it: several, if they are one holder
        self._alone: WeakValueDictionary[str, threading.RLock] = WeakValueDictionary()

    def known(self) -> set[str]:
        """The claims that this process answers for."""
        with self._lock:
            for claim_id, by in list(self._requested.items()):
                if not by:  # who asked was dropped without a word
                    del self._requested[claim_id]
            for lease in list(self._held.values()):
                if lease.holds < 1 and lease.claim_id not in self._requested:  # left to one who never came
                    self._drop(lease)
            return self._requested.keys() | self._held.keys()

    def requested(self, claim_id: str, by: object) -> None:
        """This process answers for the claim from now on, since somebody (`by`) asks for it."""
        with self._lock:
            self._requested.setdefault(claim_id, WeakSet()).add(by)

    def forget(self, claim_id: str, by: object) -> None:
        """One who asked does so no more; this process answers for the claim if it holds it or others ask for it."""
        with self._lock:
            others = self._requested.get(claim_id)
            if others is not None:
                others.discard(by)
            if not others:
                self._requested.pop(claim_id, None)

    def leave_to_others(self, claim_id: str, by: object) -> bool:
        """One who waited gives up: whether others here wait for the claim, or hold it, so that it is to stay."""
        with self._lock:
            self.forget(claim_id, by)
            lease = self._held.get(claim_id)
            if self._requested.get(claim_id) or (lease is not None and lease.holds > 0):
                return True
            self._requested.setdefault(claim_id, WeakSet()).add(by)  # until it has been given back
            if lease is not None:
                self._drop(lease)
            return False

    def _drop(self, lease: Lease) -> None:
        if self._held.get(lease.claim_id) is lease:  # not one that has come in its place
            del self._held[lease.claim_id]
        if self._held_by.get(holder := lease.claim.holder or "") is lease:
            del self._held_by[holder]

    def alone_for(self, claim: Claim) -> AbstractContextManager[object]:
        """One after the other: who joins a holder's lease in this process, and who gives it back for the last time."""
        return self._lock_of(claim.holder) if claim.holder is not None else nullcontext()

    def _lock_of(self, holder: str) -> threading.RLock:
        with self._lock:
            return self._alone.setdefault(holder, threading.RLock())

    def leave_forgotten(self, session_id: str) -> None:
        """Leave the claims with a holder that this process does not answer for: a release has failed, or nobody has
        heard of a grant. Raises StoreUnavailable.
        """
        joined = self._store.joined(session_id)
        known = self.known()
        for claim in joined:
            if claim.claim_id in known or claim.holder is None:
                continue
            alone = self._lock_of(claim.holder)
            if not alone.acquire(blocking=False):
                continue  # somebody here is about to join it, or to give it back
            try:
                if claim.claim_id not in self.known():
                    self._store.release(claim.claim_id, session_id)
            finally:
                alone.release()

    def join(self, claim: Claim) -> Lease | None:
        """The lease that the same holder has here already, held once more; None if there is none."""
        holder = claim.holder
        with self._lock:
            lease = self._held_by.get(holder) if holder is not None else None
            if lease is None or lease.lost:
                return None
            lease.holds += 1
            return lease

    def find(self, claim_id: str) -> Lease | None:
        """The lease of that claim, if it is held here."""
        with self._lock:
            return self._held.get(claim_id)

    def keep(self, lease: Lease, *, told_before: bool = False) -> Lease:
        """Keep a new lease; the same claim granted to two threads at once is one lease, held twice.

        `told_before`: the plugins have heard of this grant, from whoever this process joins or takes over from.
        """
        with self._lock:
            known = self._held.get(lease.claim_id)
            if known is not None and not known.lost:
                known.holds += 1
                return known
            self._held[lease.claim_id] = lease
            if (holder := lease.claim.holder) is not None:
                self._held_by[holder] = lease
        if known is not None:  # whoever found the loss may look here only now
            self._tell_lost(known)
        if not told_before:
            self._hook.penstock_granted(lease=lease, waited_seconds=lease.waited_seconds)
        if lease.session_id is not None and lease.lost:  # whoever found the loss may have looked here before this came
            self.lose(lease.session_id)
        return lease

    def release(self, lease: Lease) -> None:
        """Give a lease back; the last of several holds frees the slots. Raises StoreUnavailable.

        It is left to those who have waited for it in this process, and have not come for it yet.
        """
        with self.alone_for(lease.claim):
            with self._lock:
                lease.holds = max(0, lease.holds - 1)  # given back twice it takes nothing from who comes for it now
                gone = self._held.get(lease.claim_id) is not lease or lease.on_lost.called
                if lease.unlimited or lease.holds > 0 or gone:
                    return
                if self._requested.get(lease.claim_id):  # theirs now
                    return
                self._drop(lease)
                self.requested(lease.claim_id, lease)  # or a beat would end it at the same time
            try:
                if not self._store.release(lease.claim_id, lease.session_id):
                    log.warning("%s had been lost before it was released", lease)
            finally:
                # Should that have failed, the next beat ends what nobody answers for.
                self.forget(lease.claim_id, lease)
        self._hook.penstock_released(lease=lease, held_seconds=time.monotonic() - lease.granted_at)

    def hand_over(self, lease: Lease, *, seconds: float) -> str:
        """Turn a lease into a ticket. Raises LeaseLost if it was not ours any more."""
        if lease.session_id is not None and not self._store.hand_over(
            lease.claim_id, lease.session_id, ticket_seconds=seconds
        ):
            raise LeaseLost(f"{lease.claim}: the lease was lost before it could be handed over; claim again")
        with self._lock:
            self._drop(lease)
        return lease.claim_id

    def lose(self, session_id: str) -> None:
        """That session of this process has ended: what was held under it is lost."""
        with self._lock:
            lost = [lease for lease in self._held.values() if lease.session_id == session_id]
        for lease in lost:
            self._tell_lost(lease)
        with self._lock:  # not before: a beat that is under way gives back what is not known, and others get it
            for lease in lost:
                self._drop(lease)

    def _tell_lost(self, lease: Lease) -> None:
        if lease.mark_lost():
            self._hook.penstock_lost(lease=lease)
