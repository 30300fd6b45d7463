"""Rules 8, 12 and 14: limits that change under those who hold and wait; epochs that grow over all of it."""

from __future__ import annotations

from typing import Any

import pytest
from penstock import changes
from penstock.config import PoolLimit
from penstock.engine import Engine
from penstock.store.contract import Event
from situations import Configure, Runs, granted, held, pass_time, queued, refused, waits


def test_growing_the_default_admits_who_waits_in_every_pool_that_lives_on_it(
    engine: Engine, configure: Configure
) -> None:
    own = {"own": 1}
    configure(pools={"default_limit": 1, "limits": own})
    waiters = {}
    for name in ("a", "b", "own"):
        engine.acquire(engine.claim(name))
        waiters[name] = queued(engine, name)
    configure(pools={"default_limit": 2, "limits": own})
    assert {name: waits(request) for name, request in waiters.items()} == {"a": False, "b": False, "own": True}
    configure(pools={"default_limit": 1, "limits": own})
    assert refused(engine.try_acquire(engine.claim("a"))), "the excess drains"
    assert held(engine, "pool:a") == 2


def test_deleting_a_rule_frees_its_waiters(engine: Engine, configure: Configure) -> None:
    configure(runs={"max_concurrent_runs": 5, "tag_concurrency_limits": [{"key": "team", "limit": 1}]})
    runs = Runs(engine)
    for run_id in ("1", "2", "3"):
        runs.come(run_id, tags={"team": "x"})
    assert runs.started == ["1"]
    configure(runs={"max_concurrent_runs": 2})
    assert runs.started == ["1", "2"]
    configure()
    assert runs.started == ["1", "2", "3"]


def test_deleting_the_limit_within_a_run_frees_its_waiters(engine: Engine, configure: Configure) -> None:
    configure(ops={"max_concurrent": 1})
    granted(engine.request(engine.run_claim("r")).step())
    granted(engine.request(engine.claim(run_id="r", op_id="1", in_run=True)).step())
    waiter = queued(engine, run_id="r", op_id="2", in_run=True)
    configure()
    assert granted(waiter.step())


def test_a_waiter_moves_to_what_it_must_pass_now(store: Any, engine: Engine, configure: Configure) -> None:
    """Its pool becomes one of the run, and another limit comes in its way.

    Its own old place in the queue bars its run for as long as a waiter may take to hear of a change.
    """
    configure(pools={"limits": {"a": 1}})
    run = granted(engine.request(engine.run_claim("r")).step())
    holder = engine.acquire(engine.claim("a"))
    waiter = queued(engine, "a", run_id="r", op_id="o", in_run=True)
    configure(pools={"limits": {"a": {"limit": 1, "granularity": "run"}}}, ops={"max_concurrent": 0})
    assert waits(waiter)
    holder.release()
    pass_time(store, 3)
    assert waits(waiter)
    assert held(engine, "pool:a") == 1, "the run has it"
    configure(pools={"limits": {"a": {"limit": 1, "granularity": "run"}}})
    assert granted(waiter.step()).slots == ()
    run.release()
    assert held(engine, "pool:a") == 0


def test_deleted_and_made_again_while_held_by_more_than_it_has(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    first = engine.acquire(engine.claim("a"))
    changes.set_pool(engine, "a", None)
    beside = [engine.acquire(engine.claim("a")) for _ in range(2)]
    changes.set_pool(engine, "a", PoolLimit(limit=2))
    assert held(engine, "pool:a") == 3
    waiter = queued(engine, "a")
    for lease in (first, beside[0]):
        assert waits(waiter)
        lease.release()
    assert granted(waiter.step())
    assert refused(engine.try_acquire(engine.claim("a")))


def test_epochs_grow_over_shrinks_deletes_and_collections(store: Any, engine: Engine, configure: Configure) -> None:
    epochs: list[int] = []

    def hold(slots: int = 1) -> None:
        with engine.hold(f"a:{slots}") as lease:
            fences = lease.fences["pool:a"].values()
            assert min(fences) > max(epochs, default=0)
            epochs.extend(fences)

    configure(pools={"limits": {"a": 3}})
    hold(3)
    configure(pools={"limits": {"a": 1}})
    hold()
    configure(pools={"limits": {"a": 3}})
    hold(3)
    changes.set_pool(engine, "a", None)
    hold(2)
    store.prune(history_before=0, idle_before=store.snapshot_time() + 10**9)
    configure(pools={"default_limit": 2})
    hold(2)
    store.prune(history_before=store.snapshot_time() + 10**9, idle_before=store.snapshot_time() + 10**9)
    hold(2)


def test_every_change_is_on_record_with_who_when_and_from_where(
    store: Any, engine: Engine, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "alice")
    monkeypatch.setattr("socket.gethostname", lambda: "build-7")
    before = store.snapshot_time()
    configure(pools={"limits": {"a": 1}})
    changes.set_pool(engine, "a", PoolLimit(limit=3))
    changes.set_pool(engine, "a", None)
    rows = [row for row in store.history() if row.event is Event.CHANGED]
    assert [row.detail for row in rows] == [f"version {number} by alice from build-7" for number in (1, 2, 3)]
    assert [before <= row.at <= store.snapshot_time() for row in rows] == [True] * 3
    assert [dict(row.slots) for row in rows] == [{"pool:a": 1}, {"pool:a": 3}, {"pool:a": None}]


def test_what_claims_brought_into_being_is_collected_when_idle_and_nothing_else(
    store_kind: str, store: Any, engine: Engine, configure: Configure
) -> None:
    """The limits of each run and of each value of a tag stayed for ever."""
    rules = [{"key": "t", "value": {"applyLimitPerUniqueValue": True}, "limit": 1}, {"key": "u", "limit": 1}]
    within = [{"key": "size", "limit": 2}]
    configure(
        pools={"default_limit": 1, "limits": {"named": 2}},
        runs={"max_concurrent_runs": 5, "tag_concurrency_limits": rules},
        ops={"max_concurrent": 2, "tag_concurrency_limits": within},
    )

    def run(number: int) -> None:
        with engine.hold("a", "named", run_id=f"r{number}", run_tags={"t": "v", "u": "w"}, tags={"size": "big"}):
            pass

    run(1)
    used = {row.key for row in store.limit_rows()}
    store.prune(history_before=0, idle_before=store.snapshot_time() + 1)
    named = {"pool:named", "runs", "run_tag:u"}
    in_run = {"run_ops:process/process/r1", "run_op_tag:process/process/r1:size"}
    assert used == {*named, *in_run, "pool:a", "run_tag:t=*:v"}
    if store_kind != "memory":  # where an idle limit costs nothing, so that nothing is collected
        assert {row.key for row in store.limit_rows()} == named
    run(2)
    assert all(row.held == 0 for row in store.limit_rows())
