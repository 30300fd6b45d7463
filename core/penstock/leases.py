"""What this process answers for: the leases it holds, and the claims on their way to one."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

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
        self._requested: set[str] = set()
        self._alone: WeakValueDictionary[str, threading.RLock] = WeakValueDictionary()

    def known(self) -> set[str]:
        """The claims that this process answers for."""
        with self._lock:
            return self._requested | set(self._held)

    def requested(self, claim_id: str) -> None:
        """This process answers for the claim from now on."""
        with self._lock:
            self._requested.add(claim_id)

    def forget(self, claim_id: str) -> None:
        """This process does not answer for the claim any more, unless it holds it."""
        with self._lock:
            self._requested.discard(claim_id)

    def alone_for(self, claim: Claim) -> AbstractContextManager[object]:
        """One after the other: who joins a holder's lease in this process, and who gives it back for the last time."""
        return self._lock_of(claim.holder) if claim.holder is not None else nullcontext()

    def _lock_of(self, holder: str) -> threading.RLock:
        with self._lock:
            return self._alone.setdefault(holder, threading.RLock())

    def leave_forgotten(self, session_id: str) -> None:
        """Leave the runs that this process is a member of and does not answer for: a release has failed, or nobody has
        heard of a grant. Raises StoreUnavailable.
        """
        for claim in self._store.joined(session_id):
            if claim.claim_id in self.known() or claim.holder is None:
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
            for lease in self._held.values() if holder is not None else ():
                if lease.claim.holder == holder and not lease.lost:
                    lease.holds += 1
                    return lease
        return None

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
            if known is not None:
                known.holds += 1
                return known
            self._held[lease.claim_id] = lease
        if not told_before:
            self._hook.penstock_granted(lease=lease, waited_seconds=lease.waited_seconds)
        return lease

    def release(self, lease: Lease) -> None:
        """Give a lease back; the last of several holds frees the slots. Raises StoreUnavailable."""
        with self.alone_for(lease.claim):
            with self._lock:
                lease.holds -= 1
                if lease.unlimited or lease.holds > 0 or lease.claim_id not in self._held:
                    return
                del self._held[lease.claim_id]
                self._requested.add(lease.claim_id)  # or a beat would end it at the same time
            try:
                if not self._store.release(lease.claim_id, lease.session_id):
                    log.warning("%s had been lost before it was released", lease)
            finally:
                # Should that have failed, the next beat ends what nobody answers for.
                self.forget(lease.claim_id)
        self._hook.penstock_released(lease=lease, held_seconds=time.monotonic() - lease.granted_at)

    def hand_over(self, lease: Lease, *, seconds: float) -> str:
        """Turn a lease into a ticket. Raises LeaseLost if it was not ours any more."""
        if lease.session_id is not None and not self._store.hand_over(
            lease.claim_id, lease.session_id, ticket_seconds=seconds
        ):
            raise LeaseLost(f"{lease.claim.label}: the lease was lost before it could be handed over; claim again")
        with self._lock:
            self._held.pop(lease.claim_id, None)
        self.forget(lease.claim_id)
        return lease.claim_id

    def lose(self, session_id: str) -> None:
        """That session of this process has ended: what was held under it is lost."""
        with self._lock:
            lost = [lease for lease in self._held.values() if lease.session_id == session_id]
            for lease in lost:
                del self._held[lease.claim_id]
        for lease in lost:
            if lease.mark_lost():
                self._hook.penstock_lost(lease=lease)
