"""The oracle and an SQL store, asked the same at the same instant: they must answer and stand the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from penstock.rules import Source
from penstock.store.asking import AGED
from penstock.store.contract import ClaimRow, ClaimState, Event, HistoryRow, Outcome, Snapshot
from standing import StandingMemoryStore

HOLDING = (ClaimState.GRANTED, ClaimState.HELD)


def plain(answer: Any) -> Any:
    """An answer without what may differ: which of the free slots were taken, and the numbers of their epochs."""
    if isinstance(answer, Outcome):
        slots = tuple(sorted(Counter(held.limit for held in answer.slots).items()))
        return replace(answer, slots=slots, observed=tuple(sorted(answer.observed)))  # type: ignore[arg-type]
    return answer


def row_of(row: ClaimRow) -> dict[str, Any]:
    """A claim in a snapshot without what may differ."""
    return {
        "id": row.claim.claim_id,
        "kind": row.claim.kind,
        "state": row.state,
        "wants": dict(row.wants),
        "rank": row.rank,
        "enqueued_at": row.enqueued_at,
        "granted_at": row.granted_at,
        "expires_at": row.expires_at,
        "slots": Counter(held.limit for held in row.slots),
        "sessions": row.session_ids,
        "probed": row.probed,
        "observed": row.observed,
    }


def event_of(row: HistoryRow) -> tuple[Any, ...]:
    """An event; of a change of the configuration only that it was."""
    if row.event is Event.CHANGED:
        return (row.at, row.event)
    slots = tuple(sorted(row.slots.items()))
    return (row.at, row.event, row.claim_id, row.label, slots, row.wait_seconds, row.hold_seconds)


def alike(got: Iterable[Any], expected: Iterable[Any]) -> None:
    """Two lists; where they differ is shown, not all of them."""
    got, expected = list(got), list(expected)
    only_store, only_oracle = ([row for row in a if row not in b] for a, b in ((got, expected), (expected, got)))
    assert got == expected, (
        f"{len(got)}, {len(expected)}: only the store has {only_store}, only the oracle {only_oracle}"
    )


@dataclass(frozen=True)
class Seen:
    """The store's snapshot after a step, and under which version and at what time it was taken."""

    snapshot: Snapshot
    able: frozenset[str]
    """The waiters that may be granted at all."""


class Twins:
    """One pair of stores. `both` asks; `compare` holds them against each other and against the invariants."""

    def __init__(self, store: Any) -> None:
        self.oracle, self.store = StandingMemoryStore(), store
        self._epochs: dict[str, int] = {}
        self._known: set[tuple[str, str, int]] = set()
        self._apart = False
        self._pruned: list[HistoryRow] = []
        self._seen = Seen(store.snapshot(), frozenset())

    def both(self, ask: Callable[[Any], Any]) -> Any:
        """Ask both; the answer that they must have in common."""
        self._apart = True  # unless they are found alike: then their histories, too, can be compared at the end
        expected = ask(self.oracle)
        got = ask(self.store)
        assert plain(got) == plain(expected), f"the store says {plain(got)}, the oracle {plain(expected)}"
        self._apart = False
        return expected

    def shift(self, microseconds: int) -> None:
        """Let both clocks run on."""
        self.oracle.clock_shift += microseconds
        self.store.clock_shift += microseconds

    def prune(self, history_before: int, idle_before: int) -> None:
        """Both forget; what the store forgets is kept here, to be replayed at the end."""
        self._pruned += [row for row in self.store.history() if row.at < history_before]
        ask = {"history_before": history_before, "idle_before": idle_before}
        assert self.store.prune(**ask)["history"] == self.oracle.prune(**ask)["history"]

    def compare(self, *, observing: bool = False) -> None:
        """After one more look of both for waiters they must be alike."""
        self.both(lambda store: store.grant_pass() and None)
        expected, got = self.oracle.snapshot(), self.store.snapshot()
        assert got.now == expected.now
        alike(map(row_of, got.claims), map(row_of, expected.claims))
        assert got.sessions == expected.sessions
        # An idle limit may have been collected; it is made again when somebody names it.
        there = {row.key for row in got.limits}
        there_or_used = [row for row in expected.limits if row.key in there or row.held or row.waiting]
        # Where the same capacity comes from is put right when limits are settled, not when they are asked for.
        alike(*([replace(row, source=Source.NONE) for row in rows] for rows in (got.limits, there_or_used)))
        able = frozenset(
            claim_id
            for claim_id, entry in self.oracle._claims.items()
            if self.oracle._able(entry) and not any(self.oracle._unresolved_ahead(key, entry) for key in entry.wants)
        )
        self._check(Seen(got, able), observing=observing)
        self._seen = Seen(got, able)

    def compare_reasons(self, claim_id: str) -> None:
        """What bars a claim must be told alike."""
        self.both(lambda store: sorted(map(str, store.reasons(claim_id))))

    # -- the invariants ----------------------------------------------------------------------------------------------

    def _check(self, now: Seen, *, observing: bool) -> None:
        before = {row.key: row.held for row in self._seen.snapshot.limits}
        for limit in now.snapshot.limits:  # I1
            if limit.capacity is not None and limit.held > limit.capacity and not observing:
                assert limit.held <= before.get(limit.key, 0), f"{limit.key}: {limit.held} of {limit.capacity} held"
        for row in now.snapshot.claims:  # I2
            has = Counter(held.limit for held in row.slots)
            assert has == (Counter(row.wants) if row.state in HOLDING else Counter()), row
        self._check_epochs(now.snapshot)
        self._check_order(now)

    def _check_epochs(self, snapshot: Snapshot) -> None:
        """I3: over deletes, too; and each slot has one holder."""
        marks = {(held.limit, row.claim.claim_id, held.epoch) for row in snapshot.claims for held in row.slots}
        numbers = [(held.limit, held.slot) for row in snapshot.claims for held in row.slots]
        assert len(numbers) == len(set(numbers)), numbers
        for limit, _, epoch in sorted(marks - self._known, key=lambda mark: mark[2]):
            assert epoch > self._epochs.get(limit, -1), f"{limit}: epoch {epoch} after {self._epochs[limit]}"
            self._epochs[limit] = epoch
        self._known |= marks

    def _check_order(self, now: Seen) -> None:
        """Grants follow rank: nobody was granted past one who came before it and asked for no more.

        And nobody is left who has room. Reservations apart: with aged waiters only the oracle knows.
        """
        states = {row.claim.claim_id: row for row in now.snapshot.claims}
        if any(row.enqueued_at < now.snapshot.now - AGED for row in states.values() if row.state is ClaimState.WAITING):
            return
        room = {row.key: None if row.capacity is None else row.capacity - row.held for row in now.snapshot.limits}
        left = [states[claim_id] for claim_id in now.able if states[claim_id].state is ClaimState.WAITING]
        for row in left:
            barred = [key for key, slots in row.wants.items() if (free := room[key]) is not None and free < slots]
            assert barred, f"{row.claim.claim_id} waits, though there is room"
        held_before = {row.claim.claim_id for row in self._seen.snapshot.claims if row.state in HOLDING}
        for row in states.values():
            if row.state not in HOLDING or row.claim.claim_id in held_before or row.observed:
                continue
            for other in left:
                ahead = other.claim.claim_id in self._seen.able and other.rank < row.rank
                no_more = all(slots <= row.wants.get(key, 0) for key, slots in other.wants.items())
                assert not (ahead and no_more), f"{row.claim.claim_id} was granted before {other.claim.claim_id}"

    def finish(self) -> None:
        """At the end: both histories tell the same, and replayed they come to what is held now (I8)."""
        if self._apart:
            return
        history = [*self._pruned, *self.store.history()]
        told = map(event_of, self.oracle._history)
        alike(sorted(map(event_of, history), key=repr), sorted(told, key=repr))
        held: dict[str, Mapping[str, int]] = {}
        for row in history:
            if row.event is Event.GRANTED:
                held[str(row.claim_id)] = row.slots
            elif row.event in (Event.RELEASED, Event.EXPIRED, Event.WITHDRAWN, Event.PARKED):
                held.pop(str(row.claim_id), None)
        snapshot = self.store.snapshot()
        assert held == {row.claim.claim_id: row.wants for row in snapshot.claims if row.state in HOLDING}
