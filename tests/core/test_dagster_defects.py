"""The defects of Dagster's limits that must not come along, each by the number it has in our list of them."""

from __future__ import annotations

import multiprocessing
import threading
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import penstock
import pytest
from claimers import claim_in_rounds, cpu_seconds_of_a_wait, hold_for_ever
from penstock import changes, rules
from penstock.config import Concurrency
from penstock.config_file import read
from penstock.decision import Granted
from penstock.engine import Engine
from penstock.errors import ConfigError
from penstock.hookspecs import hookimpl
from penstock.store.contract import ClaimState, Event
from pydantic import ValidationError
from situations import (
    CALM,
    Configure,
    NewEngine,
    Runs,
    barred_by,
    granted,
    held,
    in_threads,
    pass_time,
    queued,
    reap,
    refused,
    room,
    until,
    waiting,
    waits,
)

ROUNDS = 40
CLAIMERS = 8
SPAWN = multiprocessing.get_context("spawn")
in_processes = pytest.mark.parametrize("store_kind", ["sqlite", "postgresql", "mariadb"], indirect=True)
of_the_file = pytest.mark.parametrize("store_kind", ["memory"], indirect=True)  # what the store is does not matter


@pytest.fixture
def engine(new_engine: NewEngine) -> Engine:
    """One engine that does nothing by itself, and outlives any shift of the clock."""
    return new_engine(settings=CALM)


# -- 1: simultaneous claims exceed the limit on PostgreSQL (limit 1, 8 claimers: 18 of 40 rounds over) ---------------


@in_processes
def test_dagster_defect_1_simultaneous_claims_never_exceed_the_limit(store_url: str) -> None:
    """Dagster, on PostgreSQL: 18 of 40 rounds over a limit of 1, 37 of 40 over a limit of 3."""
    limits = [1 if number % 2 else 3 for number in range(ROUNDS)]
    block = {"default_limit": 1, "limits": {f"pool{number}": 3 for number in range(0, ROUNDS, 2)}}
    with penstock.connect(store_url) as engine, SPAWN.Manager() as manager:
        changes.apply(engine, Concurrency.model_validate({"pools": block}), expected_version=0)
        barrier = manager.Barrier(CLAIMERS)
        with ProcessPoolExecutor(CLAIMERS, mp_context=SPAWN) as workers:
            asked = [workers.submit(claim_in_rounds, store_url, ROUNDS, barrier) for _ in range(CLAIMERS)]
            errors = [error for each in asked if (error := each.exception(240)) is not None]
            assert [error for error in errors if not isinstance(error, threading.BrokenBarrierError)] == []
            granted_in = [sum(outcomes) for outcomes in zip(*(each.result() for each in asked), strict=True)]
    assert granted_in == limits


@pytest.mark.parametrize("limit", [1, 3])
def test_dagster_defect_1_simultaneous_claims_of_threads_never_exceed_the_limit(
    engine: Engine, configure: Configure, limit: int
) -> None:
    configure(pools={"default_limit": limit})
    for number in range(10):
        decisions = in_threads(CLAIMERS, lambda _, pool=f"pool{number}": engine.try_acquire(engine.claim(pool)))
        assert sum(isinstance(decision, Granted) for decision in decisions) == limit


# -- 2: default_limit not enforced on the first look at a pool (3 of 3 runs passed a limit of 1) ---------------------


def test_dagster_defect_2_default_limit_holds_from_the_first_look_at_a_pool(
    engine: Engine, configure: Configure
) -> None:
    configure(pools={"default_limit": 1})
    assert granted(engine.try_acquire(engine.claim("never_seen_before")))
    assert refused(engine.try_acquire(engine.claim("never_seen_before")))
    assert refused(engine.try_acquire(engine.claim("never_seen_before")))


def test_dagster_defect_2_default_limit_holds_from_the_first_look_of_a_run(
    engine: Engine, configure: Configure
) -> None:
    configure(pools={"default_limit": 1, "granularity": "run"})
    runs = Runs(engine)
    for run_id in ("1", "2", "3"):
        runs.come(run_id, "never_seen_before")
    assert runs.started == ["1"]


def test_dagster_defect_2_default_limit_holds_for_first_claims_at_once(
    new_engine: NewEngine, configure: Configure
) -> None:
    configure(pools={"default_limit": 1})
    engines = [new_engine() for _ in range(4)]
    for number in range(10):
        pool = f"first{number}"
        decisions = in_threads(4, lambda n, pool=pool: engines[n].try_acquire(engines[n].claim(pool)))
        assert sum(isinstance(decision, Granted) for decision in decisions) == 1


# -- 3: default_limit 0 means unlimited in the run queue -------------------------------------------------------------


def test_dagster_defect_3_a_default_limit_of_0_closes(engine: Engine, configure: Configure) -> None:
    configure(pools={"default_limit": 0})
    assert refused(engine.try_acquire(engine.claim("foo")))
    waiter = queued(engine, "foo")
    assert [str(reason) for reason in engine.reasons(waiter.claim_id)] == ["foo: closed (limit 0)"]


def test_dagster_defect_3_a_default_limit_of_0_closes_for_runs(engine: Engine, configure: Configure) -> None:
    configure(pools={"default_limit": 0, "granularity": "run"})
    runs = Runs(engine)
    runs.come("1", "foo")
    runs.come("2")
    assert runs.started == ["2"]


def test_dagster_defect_3_a_default_limit_of_0_holds_runs_back_at_the_gate(
    engine: Engine, configure: Configure
) -> None:
    """Also for a pool that nobody has named yet, which no host can know the free slots of."""
    configure(pools={"default_limit": 0, "limits": {"open": 1}})
    concurrency = engine.configuration(fresh=True)[1]
    assert rules.root_pools_full([{"foo"}], room(engine), concurrency) == ("foo",)
    assert rules.root_pools_full([{"foo"}, {"open"}], room(engine), concurrency) == ()


@of_the_file
def test_dagster_defect_3_a_default_limit_of_0_is_read_checked_and_applied_as_it_is(engine: Engine) -> None:
    concurrency = read("concurrency: {pools: {default_limit: 0}}").concurrency
    plan = changes.plan(engine, concurrency)
    assert [str(change) for change in plan.changes] == ["+ concurrency.pools.default_limit: 0"]
    changes.apply(engine, plan.after, expected_version=plan.version)
    assert engine.configuration(fresh=True)[1].pools.default_limit == 0


# -- 4: pool-blocked runs use up tag limits (dagster#25743) ----------------------------------------------------------


def test_dagster_defect_4_a_run_barred_by_a_pool_uses_up_no_tag_limit(engine: Engine, configure: Configure) -> None:
    configure(
        pools={"limits": {"foo": {"limit": 1, "granularity": "run"}}},
        runs={"max_concurrent_runs": 2, "tag_concurrency_limits": [{"key": "team", "limit": 2}]},
    )
    runs = Runs(engine)
    runs.come("1", "foo", tags={"team": "x"})
    runs.come("barred", "foo", tags={"team": "x"})
    assert barred_by(engine, runs.requests["barred"]) == {"pool:foo"}
    assert (held(engine, "run_tag:team"), held(engine, "runs")) == (1, 1)
    runs.come("free", tags={"team": "x"})
    assert runs.started == ["1", "free"]


# -- 5: deleting the only limit while a slot is held makes every read of the store raise -----------------------------


def test_dagster_defect_5_the_only_limit_is_deleted_while_a_slot_is_held(engine: Engine, configure: Configure) -> None:
    """Dagster raises IntegrityError at every read of its store then."""
    configure(pools={"limits": {"foo": 1}})
    lease = granted(engine.try_acquire(engine.claim("foo")))
    waiter = queued(engine, "foo")
    changes.set_pool(engine, "foo", None)
    assert [(row["key"], row["capacity"]) for row in engine.status()["limits"]] == [("pool:foo", None)]
    assert len(engine.snapshot().claims) == 2
    assert engine.store.history()
    assert engine.reasons(waiter.claim_id) == ()
    assert granted(waiter.step()), "a deleted limit bars nobody"
    assert granted(engine.try_acquire(engine.claim("foo")))
    assert engine.store.sweep().settled
    assert held(engine, "pool:foo") == 3
    lease.release()
    assert held(engine, "pool:foo") == 2


# -- 6: delete, then re-create leaves a pool blocked with nobody holding ---------------------------------------------


@pytest.mark.parametrize("released", ["while it does not exist", "when it is back"])
def test_dagster_defect_6_deleted_and_made_again_a_pool_is_not_blocked_by_nobody(
    engine: Engine, configure: Configure, released: str
) -> None:
    configure(pools={"limits": {"foo": 1}})
    lease = granted(engine.try_acquire(engine.claim("foo")))
    changes.set_pool(engine, "foo", None)
    if released == "while it does not exist":
        lease.release()
    configure(pools={"limits": {"foo": 1}})
    if released == "when it is back":
        assert refused(engine.try_acquire(engine.claim("foo"))), "who held it before is still counted"
        lease.release()
    assert held(engine, "pool:foo") == 0
    assert granted(engine.try_acquire(engine.claim("foo")))
    assert refused(engine.try_acquire(engine.claim("foo")))


# -- 7: after a shrink a low priority passes a high one --------------------------------------------------------------


def test_dagster_defect_7_after_a_shrink_order_still_holds(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"foo": 3}})
    holders = [engine.acquire(engine.claim("foo")) for _ in range(3)]
    low = queued(engine, "foo", priority=-5)
    middle = queued(engine, "foo")
    high = queued(engine, "foo", priority=5)
    configure(pools={"limits": {"foo": 1}})
    for number, holder in enumerate(holders, 1):
        assert [waits(each) for each in (low, middle, high)] == [True, True, True]
        holder.release()
        assert held(engine, "pool:foo") == (3 - number or 1), "the excess drains and never grows"
    order = []
    for expected in (high, middle, low):
        assert [each for each in (low, middle, high) if each not in order and not waits(each)] == [expected]
        order.append(expected)
        lease = engine.leases.find(expected.claim_id)
        assert lease is not None
        lease.holds = 1
        lease.release()


# -- 8: slots of killed or cancelled runs stay held (dagster#32560) --------------------------------------------------


def test_dagster_defect_8_what_a_dead_process_held_is_free_after_ttl_and_grace(
    store: Any, new_engine: NewEngine, engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": {"foo": 1}}, runs={"max_concurrent_runs": 1})
    dead = new_engine()
    granted(dead.request(dead.run_claim("r")).step())
    granted(dead.request(dead.claim("foo", run_id="r", op_id="op", in_run=True)).step())
    next_op, next_run = queued(engine, "foo"), engine.request(engine.run_claim("s"))
    dead._session._stop.set()  # it beats no more
    pass_time(store, 32)
    store.sweep()
    assert waits(next_op)
    assert waits(next_run)
    pass_time(store, 2)
    store.sweep()
    assert granted(next_op.step())
    assert granted(next_run.step())
    expired = [row for row in store.history() if row.event is Event.EXPIRED]
    assert sorted(row.label or "" for row in expired) == ["process/process r", "process/process r op"]


@in_processes
def test_dagster_defect_8_what_a_killed_process_held_is_free_again(
    store_url: str, store: Any, engine: Engine, configure: Configure
) -> None:
    """A real process and a real kill -9; only the time until it is taken for dead is shifted."""
    configure(pools={"limits": {"foo": 1}}, runs={"max_concurrent_runs": 1})
    holds = SPAWN.Event()
    child = SPAWN.Process(target=hold_for_ever, args=(store_url, "r", "foo", holds))
    child.start()
    assert holds.wait(60)
    waiter = queued(engine, "foo")
    child.kill()
    child.join(60)
    store.sweep()
    assert (held(engine, "pool:foo"), held(engine, "runs")) == (1, 1)
    pass_time(store, 34)
    reap(store)
    assert granted(waiter.step())
    assert (held(engine, "pool:foo"), held(engine, "runs")) == (1, 0)


def test_dagster_defect_8_what_a_cancelled_run_held_is_free_at_once(
    new_engine: NewEngine, configure: Configure
) -> None:
    """Its processes may be gone long since: the host is asked, and what it says counts."""

    class Host:
        @hookimpl
        def penstock_holder_alive(self, claim: Any) -> bool | None:
            return claim.claim.run_id != "cancelled"

    configure(runs={"max_concurrent_runs": 2})
    engine = new_engine(Host(), settings=CALM)
    for run_id in ("cancelled", "alive"):
        granted(engine.request(engine.run_claim(run_id), probed=True).step())
    assert refused(engine.try_acquire(engine.run_claim("next")))
    assert engine.janitor.probe() == 1
    assert granted(engine.try_acquire(engine.run_claim("next")))
    assert {row["run_id"] for row in engine.status()["leases"]} == {"alive", "next"}


# -- 9: run granularity always shows 0 occupied ----------------------------------------------------------------------


def test_dagster_defect_9_run_granularity_shows_what_is_held_and_by_whom(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"foo": {"limit": 2, "granularity": "run"}}})
    runs = Runs(engine)
    for run_id in ("1", "2", "3"):
        runs.come(run_id, "foo")
    granted(engine.request(engine.claim("foo", run_id="1", op_id="op", in_run=True)).step())
    shown = engine.status()
    limit = {row["key"]: row for row in shown["limits"]}["pool:foo"]
    assert (limit["held"], limit["capacity"], limit["waiting"], limit["granularity"]) == (2, 2, 1, "run")
    of_foo = [row["run_id"] for row in shown["leases"] if "pool:foo" in {slot["limit"] for slot in row["slots"]}]
    assert sorted(of_foo) == ["1", "2"]
    assert len(shown["waiters"][0]["blocked_by"][0]["holders"]) == 2


# -- 10: the run buffer raises the limit in run granularity ----------------------------------------------------------


def test_dagster_defect_10_the_run_buffer_raises_no_limit_of_run_granularity(
    engine: Engine, configure: Configure
) -> None:
    configure(pools={"granularity": "run", "op_granularity_run_buffer": 5, "limits": {"foo": 1}})
    runs = Runs(engine)
    for run_id in ("1", "2", "3"):
        runs.come(run_id, "foo")
    assert runs.started == ["1"]
    assert held(engine, "pool:foo") == 1
    configure(pools={"op_granularity_run_buffer": 5, "limits": {"foo": 1}})
    assert refused(engine.try_acquire(engine.claim("foo"))), "nor one of op granularity"


# -- 11: up to 15 s idle slot after a release; busy loop in process --------------------------------------------------


def test_dagster_defect_11_a_release_hands_over_before_it_returns(
    new_engine: NewEngine, engine: Engine, configure: Configure
) -> None:
    """Nobody polls here, and no time passes: whoever gives a slot back has given it to the next one."""
    configure(pools={"limits": {"foo": 1}})
    holder, elsewhere = engine.acquire(engine.claim("foo")), new_engine(settings=CALM)
    waiter = queued(elsewhere, "foo")
    holder.release()
    (row,) = engine.snapshot().claims
    assert (row.claim.claim_id, row.state) == (waiter.claim_id, ClaimState.GRANTED)
    assert (held(engine, "pool:foo"), waiting(engine, "pool:foo")) == (1, 0)


def test_dagster_defect_11_a_release_wakes_who_waits(engine: Engine, configure: Configure) -> None:
    """By the release itself: a waiter that is not woken looks by itself after 30 s at the earliest."""
    configure(pools={"limits": {"foo": 1}})
    holders = [engine.acquire(engine.claim("foo"))]

    def hold(number: int) -> float:
        if number == 0:
            until(lambda: waiting(engine, "pool:foo") == 3)
            holders[0].release()
            return 0.0
        with engine.acquire(engine.claim("foo"), wait_timeout_seconds=60) as lease:
            return lease.waited_seconds

    assert max(in_threads(4, hold)) < 15


@in_processes
def test_dagster_defect_11_who_waits_is_not_busy(store_url: str, engine: Engine, configure: Configure) -> None:
    """A loop without a pause takes a second of a processor for each second of the wait, or its share of a busy one."""
    configure(pools={"limits": {"foo": 1}})
    seconds = 2.0
    with engine.hold("foo"), ProcessPoolExecutor(1, mp_context=SPAWN) as worker:
        spent = worker.submit(cpu_seconds_of_a_wait, store_url, "foo", seconds).result(60)
    print(f"{spent:.3f} s of processor time in a wait of {seconds:.0f} s")
    assert spent < 0.1 * seconds


# -- 12: negative limits accepted; null blocks crash the parser ------------------------------------------------------

NEGATIVE = [
    "pools: {default_limit: -1}",
    "pools: {limits: {foo: -1}}",
    "pools: {limits: {foo: {limit: -1}}}",
    "pools: {op_granularity_run_buffer: -1}",
    "runs: {max_concurrent_runs: -2}",
    "runs: {tag_concurrency_limits: [{key: a, limit: -1}]}",
    "ops: {max_concurrent: -1}",
    "ops: {tag_concurrency_limits: [{key: a, limit: -1}]}",
]


@pytest.mark.parametrize("text", NEGATIVE)
def test_dagster_defect_12_a_negative_limit_is_a_fault(text: str) -> None:
    with pytest.raises(ConfigError, match=r"-[12] found; at least (0|-1) is expected") as raised:
        read(f"concurrency: {{{text}}}")
    assert raised.value.faults[0].line == 1


def test_dagster_defect_12_a_negative_limit_cannot_be_put_in_force(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"foo": 1}})
    for wrong in (
        {"pools": {"limits": {"foo": -1}}},
        {"pools": {"default_limit": -1}},
        {"ops": {"max_concurrent": -1}},
    ):
        with pytest.raises(ValidationError):
            configure(**wrong)
    assert engine.configuration(fresh=True)[1].pools.limits["foo"].limit == 1
    assert granted(engine.try_acquire(engine.claim("foo")))
    assert refused(engine.try_acquire(engine.claim("foo")))


@pytest.mark.parametrize(
    "text",
    [
        "concurrency:",
        "concurrency:\n  pools:\n  runs:\n  ops:\n",
        "concurrency:\n  pools:\n    default_limit:\n    limits:\n",
        "concurrency:\n  runs:\n    max_concurrent_runs:\n    tag_concurrency_limits:\n",
        "concurrency:\n  ops:\n    max_concurrent:\n    tag_concurrency_limits:\n",
        "concurrency:\n  default_op_concurrency_limit:\n",
    ],
)
def test_dagster_defect_12_a_null_block_is_an_empty_one(text: str) -> None:
    assert read(text).concurrency == Concurrency()
