"""Rules 2 and 4: what a run takes once, with its claim or at the first op that names it, and keeps to its end."""

from __future__ import annotations

import pytest
from penstock.claim import ClaimKind
from penstock.decision import Waiting
from penstock.engine import Engine
from penstock.errors import Blocked, ClaimError, ImpossibleClaim
from penstock.lease import Lease
from penstock.request import Request
from situations import CALM, Configure, NewEngine, granted, held, in_threads, queued, waiting, waits

BY_RUN = {"limit": 2, "granularity": "run"}


def run(engine: Engine, run_id: str, *pools: str) -> Lease:
    return granted(engine.request(engine.run_claim(run_id, *pools)).step())


def op(engine: Engine, run_id: str, op_id: str, *pools: str) -> Request:
    return engine.request(engine.claim(*pools, run_id=run_id, op_id=op_id, in_run=True))


def test_a_pool_declared_on_the_run_is_taken_with_its_claim_and_ops_take_none(
    engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": {"a": BY_RUN}})
    lease = run(engine, "1", "a")
    assert {slot.limit for slot in lease.slots} == {"pool:a", "runs"}
    ops = [granted(op(engine, "1", op_id, "a").step()) for op_id in ("x", "y", "z")]
    assert [lease.slots for lease in ops] == [(), (), ()]
    for each in ops:
        each.release()
    assert held(engine, "pool:a") == 1
    lease.release()
    assert held(engine, "pool:a") == 0


def test_any_pool_may_be_declared_on_a_run_whatever_its_granularity(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 2}})
    lease = run(engine, "1", "a:2")
    assert held(engine, "pool:a") == 2
    assert granted(op(engine, "1", "x", "a:2").step()).slots == ()
    lease.release()
    assert held(engine, "pool:a") == 0


def test_a_pool_named_late_is_taken_by_the_run_at_the_first_op_and_kept_to_its_end(
    engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": {"a": BY_RUN}})
    lease = run(engine, "1")
    first = granted(op(engine, "1", "x", "a").step())
    assert first.slots == ()
    assert held(engine, "pool:a") == 1
    first.release()
    assert held(engine, "pool:a") == 1, "the run keeps it when the op is over"
    assert granted(op(engine, "1", "y", "a").step()).slots == ()
    assert held(engine, "pool:a") == 1
    lease.release()
    assert held(engine, "pool:a") == 0


def test_an_op_waits_for_a_late_pool_of_its_run_holding_nothing(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": {"limit": 1, "granularity": "run"}, "b": 1}})
    other = run(engine, "other", "a")
    run(engine, "1")
    request = op(engine, "1", "x", "a", "b")
    assert waits(request)
    assert (waiting(engine, "pool:a"), held(engine, "pool:b")) == (1, 0)
    other.release()
    assert [slot.limit for slot in granted(request.step()).slots] == ["pool:b"]
    assert held(engine, "pool:a") == 1


def test_a_late_pool_keeps_the_runs_place_over_its_ops(engine: Engine, configure: Configure) -> None:
    """Two ops that name it make one claim of the run, not two."""
    configure(pools={"limits": {"a": {"limit": 1, "granularity": "run"}}})
    other = run(engine, "other", "a")
    run(engine, "1")
    ops = [op(engine, "1", op_id, "a") for op_id in ("x", "y")]
    assert [waits(each) for each in ops] == [True, True]
    assert waiting(engine, "pool:a") == 1
    other.release()
    assert [waits(each) for each in ops] == [False, False]
    assert held(engine, "pool:a") == 1


def test_an_op_that_leaves_the_queue_takes_its_late_claim_with_it(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": {"limit": 1, "granularity": "run"}}})
    run(engine, "other", "a")
    run(engine, "1")
    request = op(engine, "1", "x", "a")
    assert waits(request)
    request.withdraw()
    assert waiting(engine, "pool:a") == 0
    assert {row.claim.kind for row in engine.snapshot().claims} == {ClaimKind.RUN}


def test_an_op_that_goes_on_elsewhere_keeps_the_place_of_its_runs_late_pool(
    engine: Engine, new_engine: NewEngine, configure: Configure
) -> None:
    """Of an op that was deferred only its own place was kept: its run went to the end of the queue."""
    configure(pools={"limits": {"a": {"limit": 1, "granularity": "run"}}})
    other = run(engine, "other", "a")
    worker, later, triggerer = new_engine(), new_engine(), new_engine()
    run(engine, "1")
    run(engine, "2")
    deferred = op(worker, "1", "x", "a")
    assert waits(deferred)
    overtaking = op(later, "2", "x", "a")
    assert waits(overtaking)
    assert deferred.hand_over(ticket_seconds=60) == deferred.claim_id
    worker._session.close()
    goes_on = triggerer.request(deferred.claim, ticket=True)
    assert waits(goes_on)
    other.release()
    assert (waits(overtaking), waits(goes_on)) == (True, False)
    assert held(engine, "pool:a") == 1


@pytest.mark.parametrize("granularity", ["op", "run"])
def test_asking_for_more_than_the_run_took_is_an_error(engine: Engine, configure: Configure, granularity: str) -> None:
    configure(pools={"limits": {"a": {"limit": 5, "granularity": granularity}}})
    run(engine, "1", "a:2")
    assert granted(op(engine, "1", "x", "a:2").step()).slots == ()
    with pytest.raises(ClaimError, match="3 slots asked inside of what holds 2; take 3 there, or ask for less"):
        op(engine, "1", "y", "a:3").step()


def test_a_later_op_that_asks_for_more_than_the_run_took_late_is_an_error(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": BY_RUN}})
    run(engine, "1")
    granted(op(engine, "1", "x", "a").step())
    with pytest.raises(ClaimError, match="2 slots asked inside of what holds 1"):
        op(engine, "1", "y", "a:2").step()


def test_a_late_pool_of_more_slots_than_there_are_is_impossible(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": BY_RUN}})
    run(engine, "1")
    with pytest.raises(ImpossibleClaim, match="its run cannot have pool 'a'"):
        op(engine, "1", "x", "a:3").step()


def test_outside_a_run_under_limits_it_is_an_error_with_the_remedy(engine: Engine, configure: Configure) -> None:
    configure(pools={"granularity": "run", "default_limit": 1})
    with pytest.raises(ClaimError, match=r"in no run under limits; give it a run \(run_id=…, --run-id\), or set"):
        engine.acquire(engine.claim("a"))
    assert engine.status()["waiters"] == []
    with engine.hold("a", run_id="1") as lease:
        assert lease.slots == ()
        assert held(engine, "pool:a") == 1
    assert held(engine, "pool:a") == 0


def test_an_op_of_a_run_that_was_never_claimed_is_an_error_with_the_remedy(engine: Engine) -> None:
    with pytest.raises(ClaimError, match="its run has no lease; claim the run first"):
        op(engine, "1", "x", "a").step()


def test_an_op_is_not_granted_before_its_run_and_waits_holding_nothing(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}}, runs={"max_concurrent_runs": 1})
    other = run(engine, "other")
    own_run = engine.request(engine.run_claim("1"))
    assert waits(own_run)
    request = op(engine, "1", "x", "a")
    assert waits(request)
    assert (held(engine, "pool:a"), waiting(engine, "pool:a")) == (0, 0)
    other.release()
    granted(own_run.step())
    assert granted(request.step())


def test_what_is_outside_of_runs_does_not_count_in_runs(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}}, runs={"max_concurrent_runs": 0})
    with engine.hold("a"):
        assert held(engine, "runs") == 0


def test_granularity_from_op_to_run_while_held(engine: Engine, configure: Configure) -> None:
    """Holders keep what they hold: the op its slot; what comes is the run's to take, and there is no room yet."""
    configure(pools={"limits": {"a": 1}})
    run(engine, "1")
    by_op = granted(op(engine, "1", "x", "a").step())
    assert len(by_op.slots) == 1
    configure(pools={"limits": {"a": {"limit": 1, "granularity": "run"}}})
    assert held(engine, "pool:a") == 1
    later = op(engine, "1", "y", "a")
    assert waits(later)
    by_op.release()
    assert granted(later.step()).slots == ()
    assert held(engine, "pool:a") == 1


def test_granularity_from_run_to_op_while_held(engine: Engine, configure: Configure) -> None:
    """The run keeps its slot, which goes on to cover its ops; ops of other runs take their own."""
    configure(pools={"limits": {"a": BY_RUN}})
    lease = run(engine, "1", "a")
    configure(pools={"limits": {"a": 2}})
    assert granted(op(engine, "1", "x", "a").step()).slots == ()
    run(engine, "2")
    assert len(granted(op(engine, "2", "x", "a").step()).slots) == 1
    assert held(engine, "pool:a") == 2
    lease.release()
    assert held(engine, "pool:a") == 1


def test_a_granularity_of_one_pool_beside_the_common_one(engine: Engine, configure: Configure) -> None:
    configure(pools={"granularity": "run", "limits": {"a": 1, "b": {"limit": 1, "granularity": "op"}}})
    run(engine, "1")
    assert [slot.limit for slot in granted(op(engine, "1", "x", "a", "b").step()).slots] == ["pool:b"]
    assert (held(engine, "pool:a"), held(engine, "pool:b")) == (1, 1)


def test_a_runs_pools_end_with_its_last_session(new_engine: NewEngine, configure: Configure) -> None:
    configure(pools={"limits": {"a": BY_RUN, "late": BY_RUN}})
    one, two = new_engine(settings=CALM), new_engine(settings=CALM)
    first, second = run(one, "1", "a"), run(two, "1", "a")
    assert first.claim_id == second.claim_id
    granted(op(one, "1", "x", "late").step()).release()
    assert granted(op(two, "1", "y", "late").step()).slots == ()
    first.release()
    assert (held(one, "pool:a"), held(one, "pool:late"), held(one, "runs")) == (1, 1, 1)
    second.release()
    assert (held(one, "pool:a"), held(one, "pool:late"), held(one, "runs")) == (0, 0, 0)


def test_a_run_that_dies_gives_its_late_pools_back(new_engine: NewEngine, engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"late": BY_RUN}})
    dead = new_engine(settings=CALM)
    run(dead, "1")
    granted(op(dead, "1", "x", "late").step()).release()
    assert held(engine, "pool:late") == 1
    dead._session.close()
    engine.store.sweep()
    assert (held(engine, "pool:late"), held(engine, "runs")) == (0, 0)


def test_threads_that_name_a_late_pool_together_take_it_once(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": BY_RUN}})
    run(engine, "1")
    leases = in_threads(4, lambda number: granted(op(engine, "1", str(number), "a").step()))
    assert [lease.slots for lease in leases] == [()] * 4
    assert held(engine, "pool:a") == 1


def test_a_late_pool_is_never_waited_for_inside_of_what_holds_slots(engine: Engine, configure: Configure) -> None:
    """It could wait for itself: an error with the remedy instead."""
    configure(pools={"limits": {"a": {"limit": 1, "granularity": "run"}, "b": 1}})
    run(engine, "other", "a")
    run(engine, "1")
    outer = granted(op(engine, "1", "x", "b").step())
    inner = engine.claim("a", run_id="1", op_id="x/inner", in_run=True, parent_id=outer.claim_id)
    with pytest.raises(Blocked, match="Declare the pool on the run, which then takes it before it starts"):
        engine.request(inner).step()
    assert waiting(engine, "pool:a") == 0


def test_ops_beside_a_waiting_run_are_not_disturbed(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}}, runs={"max_concurrent_runs": 1})
    run(engine, "1")
    assert isinstance(engine.request(engine.run_claim("2")).step(), Waiting)
    first = granted(op(engine, "1", "x", "a").step())
    beside = queued(engine, "a")
    first.release()
    assert granted(beside.step())
