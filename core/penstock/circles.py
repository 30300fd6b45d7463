"""Claims that wait for each other: nested blocks, ops inside a run, child runs that are waited for. Pure functions.

A lease ends only after what is inside of it: the claims made under it (`parent_id`), and for a run its ops and its late
pools. A waiter inside one lease, for slots that another lease holds, inside of which somebody waits for what the first
one holds, would wait for ever: nobody takes slots away from a living holder.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from penstock.claim import ClaimKind
from penstock.queue import leases
from penstock.store.contract import ClaimRow, ClaimState, Snapshot
from penstock.text import shown


@dataclass(frozen=True, slots=True)
class Link:
    """`waiter` waits for `limit`, which `holder` holds; that one cannot end before the waiter of the next link."""

    waiter: ClaimRow
    limit: str
    holder: ClaimRow

    def __str__(self) -> str:
        return f"{self.waiter.claim} waits for {shown(self.limit)}, which {self.holder.claim} holds"


def circle(snapshot: Snapshot, claim_id: str) -> tuple[Link, ...]:
    """The circle in which a waiter waits, or behind which it does; empty where there is none."""
    return Waits(snapshot).circle(claim_id)


def circles(snapshot: Snapshot) -> list[tuple[Link, ...]]:
    """Every circle once."""
    waits, found, seen = Waits(snapshot), list[tuple[Link, ...]](), set[str]()
    for claim_id in sorted(waits.stuck):
        links = waits.circle(claim_id) if claim_id not in seen else ()
        members = {link.waiter.claim.claim_id for link in links}
        if links and seen.isdisjoint(members):
            found.append(links)
        seen |= members
    return found


_Run = tuple[str, str, str | None]


class Waits:
    """Who waits for whom. `stuck`: waiters for whom there is no room even when everybody who can end has ended."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._capacities = {limit.key: limit.capacity for limit in snapshot.limits}
        self._leases = {row.claim.claim_id: row for row in leases(snapshot)}
        self._runs: dict[_Run, ClaimRow] = {}
        self._late: dict[_Run, list[ClaimRow]] = defaultdict(list)
        self._holders: dict[str, list[ClaimRow]] = defaultdict(list)
        for row in self._leases.values():
            if row.claim.kind is ClaimKind.RUN:
                self._runs[_run(row)] = row
            elif row.claim.kind is ClaimKind.RUN_POOL:
                self._late[_run(row)].append(row)
            for key in {held.limit for held in row.slots}:
                self._holders[key].append(row)
        waiting = (ClaimState.WAITING, ClaimState.PARKED)
        self.stuck = {row.claim.claim_id: row for row in snapshot.claims if row.state in waiting}
        self._around = {claim_id: self._all_around(row) for claim_id, row in self.stuck.items()}
        if not any(self._around.values()):  # the usual case: nobody waits inside of what holds
            self.stuck = {}
        while freed := self._not_stuck():
            for claim_id in freed:
                del self.stuck[claim_id]
        self._inside: dict[str, list[str]] = defaultdict(list)
        for claim_id in sorted(self.stuck):
            for holder_id in self._around[claim_id]:
                self._inside[holder_id].append(claim_id)

    def circle(self, claim_id: str) -> tuple[Link, ...]:
        """Depth first from the waiter, along those who are stuck, until somebody comes again."""
        if claim_id not in self.stuck:
            return ()
        path: list[Link] = []
        walks, seen = [self._links(claim_id)], {claim_id}
        on_path = [claim_id]
        while walks:
            step = next(walks[-1], None)
            if step is None:
                walks.pop()
                on_path.pop()
                if path:
                    path.pop()
                continue
            link, following = step
            if following in on_path:
                return (*path, link)[on_path.index(following) :]
            if following not in seen:
                seen.add(following)
                path.append(link)
                on_path.append(following)
                walks.append(self._links(following))
        return ()

    def _links(self, claim_id: str) -> Iterator[tuple[Link, str]]:
        """What a stuck waiter waits for, with each waiter that must go on before that is given back."""
        row = self.stuck[claim_id]
        for key, slots in sorted(row.wants.items()):
            if self._will_have_room(key, slots) or (self._capacities[key] or 0) < slots:
                continue  # not what keeps it waiting, or closed or too small, which no holder could mend
            for holder in self._holders[key]:
                for following in self._inside.get(holder.claim.claim_id, ()):
                    yield Link(row, key, holder), following

    def _not_stuck(self) -> list[str]:
        """Those who will have room once every lease has ended that nobody stuck is inside of."""
        blocked = {holder_id for claim_id in self.stuck for holder_id in self._around[claim_id]}
        self._kept = Counter(held.limit for holder_id in blocked for held in self._leases[holder_id].slots)
        return [
            claim_id
            for claim_id, row in self.stuck.items()
            if all(self._will_have_room(key, slots) for key, slots in row.wants.items())
        ]

    def _will_have_room(self, key: str, slots: int) -> bool:
        capacity = self._capacities.get(key)
        return capacity is None or capacity - self._kept[key] >= slots

    def _all_around(self, row: ClaimRow) -> set[str]:
        """The leases that cannot end before this claim has."""
        around: set[str] = set()
        pending = [row]
        while pending:
            inner = pending.pop()
            outer = [self._leases.get(inner.claim.parent_id or "")]
            if inner.claim.in_run or inner.claim.kind is ClaimKind.RUN_POOL:
                outer.append(self._runs.get(_run(inner)))
            for lease in outer:
                if lease is None or lease.claim.claim_id in around:
                    continue
                around.add(lease.claim.claim_id)
                pending.append(lease)
                if lease.claim.kind is ClaimKind.RUN:
                    around |= {late.claim.claim_id for late in self._late[_run(lease)]}
        return around


def _run(row: ClaimRow) -> _Run:
    return row.claim.host, row.claim.deployment, row.claim.run_id
