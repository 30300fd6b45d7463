"""Rules 14 and 15: those who are one holder share one lease, from the first to the last; what is a claim of its own."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from penstock.decision import Granted
from penstock.engine import Engine
from penstock.errors import ClaimError
from situations import CALM, Configure, NewEngine, granted, held, in_threads, queued, refused, waits


@pytest.mark.parametrize("kind", ["run", "op"])
def test_joining_a_lease_that_ends_just_then_is_a_claim_of_its_own(
    store: Any, new_engine: NewEngine, configure: Configure, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """LeaseLost was raised: the other's claim was found, and had ended when this one spoke up for it."""
    configure(pools={"limits": {"a": 1}}, runs={"max_concurrent_runs": 1})
    one, two = new_engine(), new_engine()

    def claim(engine: Engine) -> Any:
        return engine.run_claim("r", "a") if kind == "run" else engine.claim("a", run_id="r", op_id="o")

    first, touch = granted(one.request(claim(one)).step()), store.touch

    def touch_late(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(store, "touch", touch)
        first.release()
        return touch(*arguments, **named)

    monkeypatch.setattr(store, "touch", touch_late)
    second = granted(two.request(claim(two)).step())
    assert second.claim_id != first.claim_id
    assert held(one, "pool:a") == 1
    second.release()
    assert held(one, "pool:a") == 0


def test_a_thread_never_joins_a_lease_that_another_one_is_giving_back(
    store: Any, engine: Engine, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was let in by the run's lease while that was on its way out, and then held a lease of nothing."""
    configure(runs={"max_concurrent_runs": 1})
    first, release = engine.acquire(engine.run_claim("r")), store.release
    joined: list[Any] = []
    asking = threading.Thread(target=lambda: joined.append(engine.try_acquire(engine.run_claim("r"))))

    def release_late(*arguments: Any) -> Any:
        monkeypatch.setattr(store, "release", release)
        asking.start()
        asking.join(0.2)  # it was through by then; now it waits for us
        return release(*arguments)

    monkeypatch.setattr(store, "release", release_late)
    first.release()
    asking.join(30)
    (decision,) = joined
    assert isinstance(decision, Granted)
    assert held(engine, "runs") == 1
    decision.lease.release()
    assert held(engine, "runs") == 0


def test_threads_in_and_out_of_one_run(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 2}}, runs={"max_concurrent_runs": 1})

    def op(number: int) -> int:
        for turn in range(5):
            with engine.hold("a", run_id="r", op_id=f"{number}/{turn}", wait_timeout_seconds=60) as lease:
                assert held(engine, "runs") == 1
                assert not lease.lost
        return 5

    assert sum(in_threads(4, op)) == 20
    assert held(engine, "runs") == held(engine, "pool:a") == 0


def test_a_nested_block_is_covered_up_to_what_the_op_around_it_holds(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 5, "b": 1}})
    outer = engine.acquire(engine.claim("a:2", run_id="r", op_id="o"))

    def nested(*pools: str) -> Any:
        return engine.try_acquire(engine.claim(*pools, run_id="r", op_id="o/inner", parent_id=outer.claim_id))

    assert granted(nested("a")).slots == ()
    inner = granted(engine.try_acquire(engine.claim("a:2", "b", parent_id=outer.claim_id)))
    assert [slot.limit for slot in inner.slots] == ["pool:b"]
    assert held(engine, "pool:a") == 2
    with pytest.raises(ClaimError, match="3 slots asked inside of what holds 2; take 3 there, or ask for less here"):
        engine.try_acquire(engine.claim("a:3", parent_id=outer.claim_id))
    inner.release()
    assert (held(engine, "pool:a"), held(engine, "pool:b")) == (2, 0)


def test_at_op_granularity_a_child_takes_a_slot_of_its_own(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 2}})
    granted(engine.request(engine.run_claim("r")).step())
    for op_id in ("parent", "parent/child"):
        assert len(granted(engine.try_acquire(engine.claim("a", run_id="r", op_id=op_id, in_run=True))).slots) == 1
    assert refused(engine.try_acquire(engine.claim("a", run_id="r", op_id="parent/child/2", in_run=True)))


def test_a_retry_is_a_claim_of_its_own_and_comes_behind_those_who_wait(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    first = engine.acquire(engine.claim("a", run_id="r", op_id="o", attempt=1))
    other = queued(engine, "a")
    retry = queued(engine, "a", run_id="r", op_id="o", attempt=2)
    assert retry.claim_id != first.claim_id
    first.release()
    assert waits(retry)
    assert granted(other.step())


def test_a_claim_that_comes_back_still_waiting_keeps_its_place(new_engine: NewEngine, configure: Configure) -> None:
    """As a deferred or rescheduled task does: each time in another process."""
    configure(pools={"limits": {"a": 1}})
    others = new_engine(settings=CALM)
    holder = others.acquire(others.claim("a"))
    claim = {"run_id": "r", "op_id": "o"}
    back = queued(new_engine(settings=CALM), "a", **claim)
    later = queued(others, "a")
    for _ in range(2):
        back.hand_over(ticket_seconds=10**6)
        back = queued(new_engine(settings=CALM), "a", **claim)
    holder.release()
    assert waits(later)
    assert granted(back.step())
