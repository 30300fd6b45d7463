"""Who waits behind whom, read off a snapshot: the same as by looking at each with each, and not at that price."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import pytest
from penstock.claim import Claim, ClaimKind
from penstock.config import Concurrency
from penstock.decision import HeldSlot
from penstock.explain import explain
from penstock.queue import SHOWN, Queue
from penstock.report import status
from penstock.rules import Source
from penstock.store.contract import ClaimRow, ClaimState, LimitRow, Snapshot

SECOND = 1_000_000
NOW = 1_000_000 * SECOND


def snapshot(waiting: Sequence[tuple[dict[str, int], int, ClaimState]], held: dict[str, int]) -> Snapshot:
    """Who waits: (limit key → slots, rank, state). Of each limit so many slots are held, of as many; each by one."""
    rows = [
        row(number, {key: 1}, NOW, ClaimState.HELD, (HeldSlot(key, number, number),))
        for number, key in enumerate((key for key, slots in held.items() for _ in range(slots)), start=1)
    ]
    rows += [row(number, *one) for number, one in enumerate(waiting, start=100_000)]
    limits = tuple(LimitRow(key, slots, Source.EXPLICIT, slots) for key, slots in sorted(held.items()))
    return Snapshot(NOW, limits, tuple(rows), ())


def row(number: int, wants: dict[str, int], rank: int, state: ClaimState, slots: tuple[HeldSlot, ...] = ()) -> ClaimRow:
    claim = Claim(
        kind=ClaimKind.OP, host="h", deployment="d", run_id="run", op_id=f"op{number}", claim_id=f"{number:06}"
    )
    return ClaimRow(claim, state, wants, rank, rank, rank if slots else None, None, slots, ())


@pytest.mark.parametrize("seed", range(20))
def test_those_ahead_are_all_of_lower_rank_that_share_a_limit(seed: int) -> None:
    chance = random.Random(seed)
    keys = ["pool:a", "pool:b", "pool:c", "runs"]
    waiting = [
        (
            {key: chance.randint(1, 3) for key in chance.sample(keys, chance.randint(1, 3))},
            NOW - chance.randint(0, 20),
            chance.choice([ClaimState.WAITING, ClaimState.WAITING, ClaimState.PARKED]),
        )
        for _ in range(60)
    ]
    queue = Queue(snapshot(waiting, {"pool:a": 12, "pool:b": 0, "runs": 1}))
    for place, waiter in enumerate(queue.waiters):
        before = [other for other in queue.waiters[:place] if other.state is ClaimState.WAITING]
        ahead = [other for other in before if not waiter.wants.keys().isdisjoint(other.wants)]
        found = queue.ahead(waiter)
        assert (found.count, list(found.first)) == (len(ahead), ahead[:SHOWN])
        assert found.at == {key: sum(key in other.wants for other in before) for key in waiter.wants}
        assert [reason.limit for reason in queue.barring(waiter)] == sorted(waiter.wants.keys() - {"pool:c"})


def test_the_price_of_a_look_grows_with_the_waiters_and_not_with_their_square() -> None:
    """2000 waiters took 7 s to show and 15 s to explain."""

    def cpu_seconds(count: int) -> float:
        waiting = [({"pool:a": 1, f"run_ops:{n % 500}": 1}, NOW + n, ClaimState.WAITING) for n in range(count)]
        seen, concurrency = snapshot(waiting, {"pool:a": 50}), Concurrency()
        began = time.process_time()
        assert len(status(seen, concurrency)["waiters"]) == count
        assert len(explain(seen, "run", 0)["matches"]) == count + 50
        return time.process_time() - began

    few = min(cpu_seconds(250) for _ in range(3))
    assert cpu_seconds(2000) < 24 * few, "eight times as many, with room for the noise of a busy machine"
