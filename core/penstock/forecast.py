"""Who would be granted if something changed: the queue played through on paper. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence

from penstock.claim import Claim
from penstock.queue import leases, waiters
from penstock.rules import Demand
from penstock.store.contract import ClaimRow, ClaimState, Snapshot

Resolve = Callable[[Claim], Sequence[Demand]]
"""What a claim must pass under the configuration in question."""


def may_start(snapshot: Snapshot, resolve: Resolve, *, without: Collection[str] = ()) -> list[ClaimRow]:
    """The waiters that have room, in order, when the claims `without` are gone.

    May, not will: reservations, and what comes meanwhile, are left out; and an op comes into the queue after its run.
    """
    held: Counter[str] = Counter()
    for row in leases(snapshot):
        if row.claim.claim_id not in without:
            held.update(slot.limit for slot in row.slots)
    starting = []
    for row in waiters(snapshot):
        if row.claim.claim_id in without or row.state is not ClaimState.WAITING:  # a parked one would not take slots
            continue
        demands = resolve(row.claim)
        if all(demand.capacity is None or held[demand.key] + demand.slots <= demand.capacity for demand in demands):
            held.update({demand.key: demand.slots for demand in demands})
            starting.append(row)
    return starting
