"""Rules 1, 3, 8 and 11: several pools and weights, all or nothing; nothing is charged for what is not admitted."""

from __future__ import annotations

from penstock.engine import Engine
from situations import Configure, Runs, barred_by, granted, held, queued, refused, waiting, waits


def test_weights(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 5}})
    lease = granted(engine.try_acquire(engine.claim("a:3")))
    assert [slot.slot for slot in lease.slots] == [1, 2, 3]
    assert refused(engine.try_acquire(engine.claim("a:3")))
    assert granted(engine.try_acquire(engine.claim("a:2")))
    assert held(engine, "pool:a") == 5


def test_several_pools_with_weights_all_or_none(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 3, "b": 2, "c": 1}})
    wide = engine.claim({"a": 2, "b": 2, "c": 1})
    with engine.hold("b"):
        request = engine.request(wide)
        assert waits(request)
        assert [held(engine, f"pool:{name}") for name in "abc"] == [0, 1, 0]
        assert [waiting(engine, f"pool:{name}") for name in "abc"] == [1, 1, 1]
        assert barred_by(engine, request) == {"pool:b"}
    lease = granted(request.step())
    assert [held(engine, f"pool:{name}") for name in "abc"] == [2, 2, 1]
    lease.release()
    assert [held(engine, f"pool:{name}") for name in "abc"] == [0, 0, 0]


def test_a_wide_waiter_wakes_when_all_of_its_slots_are_there_and_not_before(
    engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": {"a": 3}})
    holders = [engine.acquire(engine.claim("a")) for _ in range(3)]
    wide = queued(engine, "a:3")
    for holder in holders:
        assert waits(wide)
        holder.release()
    assert len(granted(wide.step()).slots) == 3


def test_limited_and_unlimited_pools_in_one_claim(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    with engine.hold("a", "free:2"):
        assert (held(engine, "pool:a"), held(engine, "pool:free")) == (1, 2)
        assert refused(engine.try_acquire(engine.claim("a", "free")))
        assert held(engine, "pool:free") == 2


def test_a_default_covers_each_pool_apart_and_explicit_ones_not(engine: Engine, configure: Configure) -> None:
    configure(pools={"default_limit": 1, "limits": {"own": 2}})
    for name, outcomes in (("a", [True, False]), ("b", [True, False]), ("own", [True, True, False])):
        found = [hasattr(engine.try_acquire(engine.claim(name)), "lease") for _ in outcomes]
        assert found == outcomes


def test_a_run_barred_by_a_pool_uses_up_no_tag_limit_and_no_run(engine: Engine, configure: Configure) -> None:
    """Dagster counts it in the tag limits all the same (dagster#25743)."""
    configure(
        pools={"limits": {"a": {"limit": 1, "granularity": "run"}}},
        runs={"max_concurrent_runs": 2, "tag_concurrency_limits": [{"key": "team", "limit": 2}]},
    )
    runs = Runs(engine)
    runs.come("1", "a", tags={"team": "x"})
    runs.come("barred", "a", tags={"team": "x"})
    assert (held(engine, "run_tag:team"), held(engine, "runs")) == (1, 1)
    runs.come("free", tags={"team": "x"})
    assert runs.started == ["1", "free"]


def test_a_refused_claim_leaves_nothing_behind(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1, "b": 1}})
    with engine.hold("a"):
        for _ in range(3):
            assert refused(engine.try_acquire(engine.claim("a", "b")))
        assert held(engine, "pool:b") == 0
        assert engine.status()["waiters"] == []
    assert granted(engine.try_acquire(engine.claim("a", "b")))
