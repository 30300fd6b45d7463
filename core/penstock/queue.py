"""Who waits behind whom, and who holds what they wait for: read off a snapshot once, for all its waiters."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from penstock.decision import Reason
from penstock.store.contract import ClaimRow, ClaimState, Snapshot

SHOWN = 10
"""So many holders, and waiters ahead, are named."""


def leases(snapshot: Snapshot) -> list[ClaimRow]:
    """Those that hold slots, oldest first."""
    rows = [row for row in snapshot.claims if row.state in (ClaimState.GRANTED, ClaimState.HELD)]
    return sorted(rows, key=lambda row: (row.granted_at or 0, row.claim.claim_id))


def waiters(snapshot: Snapshot) -> list[ClaimRow]:
    """Those in the queue, in its order."""
    rows = [row for row in snapshot.claims if row.state in (ClaimState.WAITING, ClaimState.PARKED)]
    return sorted(rows, key=lambda row: (row.rank, row.claim.claim_id))


@dataclass(frozen=True, slots=True)
class Ahead:
    """The waiters of lower rank that share a limit with one; parked ones left out.

    `count` of them all, the first of them (`SHOWN`), and how many want each of its limits.
    """

    count: int
    first: Sequence[ClaimRow]
    at: Mapping[str, int]


class Queue:
    """All that a look at one waiter needs, at a price that hardly grows with how many others there are."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.waiters, self.leases = waiters(snapshot), leases(snapshot)
        self.limits = {limit.key: limit for limit in snapshot.limits}
        self._holders: dict[str, list[ClaimRow]] = defaultdict(list)
        for row in self.leases:
            for key in dict.fromkeys(held.limit for held in row.slots):
                self._holders[key].append(row)

    def holders(self, key: str) -> list[ClaimRow]:
        """Those that hold slots of a limit, oldest first."""
        return self._holders.get(key, [])

    @cached_property
    def _ahead(self) -> dict[str, Ahead]:
        """Of every waiter, in one walk through the queue.

        Of each limit a number has a bit set for each place from which somebody wants it: of several limits together
        these are united and counted at once, however many they are.
        """
        places: dict[str, int] = defaultdict(int)
        wanting, found = Counter[str](), dict[str, Ahead]()
        for place, row in enumerate(self.waiters):
            before = 0
            for key in row.wants:
                before |= places[key]
            at = {key: wanting[key] for key in row.wants}
            found[row.claim.claim_id] = Ahead(before.bit_count(), self._first(before), at)
            if row.state is ClaimState.WAITING:
                wanting.update(row.wants.keys())
                for key in row.wants:
                    places[key] |= 1 << place
        return found

    def _first(self, places: int) -> list[ClaimRow]:
        first: list[ClaimRow] = []
        while places and len(first) < SHOWN:
            lowest = places & -places
            first.append(self.waiters[lowest.bit_length() - 1])
            places ^= lowest
        return first

    def ahead(self, row: ClaimRow) -> Ahead:
        """Who is ahead of a waiter."""
        return self._ahead[row.claim.claim_id]

    def barring(self, row: ClaimRow) -> tuple[Reason, ...]:
        """The limits that have no room for a waiter, or others before it."""
        ahead, reasons = self.ahead(row), []
        for key, slots in sorted(row.wants.items()):
            limit = self.limits.get(key)
            if limit is None or limit.capacity is None:
                continue
            if limit.capacity - limit.held < slots or ahead.at[key]:
                reasons.append(self._reason(key, slots, ahead.at[key]))
        return tuple(reasons)

    def barring_newcomer(self, wants: Mapping[str, int]) -> tuple[Reason, ...]:
        """The limits that have no room for a claim that did not stay to wait."""
        return tuple(
            self._reason(key, slots, 0)
            for key, slots in sorted(wants.items())
            if (limit := self.limits.get(key)) is not None
            and limit.capacity is not None
            and limit.capacity - limit.held < slots
        )

    def _reason(self, key: str, slots: int, queued: int) -> Reason:
        limit, shown = self.limits[key], self.holders(key)[:SHOWN]
        names, links = tuple(row.claim.label for row in shown), tuple(row.claim.url for row in shown)
        return Reason(key, slots, limit.capacity, limit.held, names, queued, links)


def reasons_for(snapshot: Snapshot, claim_id: str) -> tuple[Reason, ...]:
    """The limits that bar a waiter now; none when the claim does not wait."""
    queue = Queue(snapshot)
    row = next((row for row in queue.waiters if row.claim.claim_id == claim_id), None)
    return queue.barring(row) if row is not None else ()
