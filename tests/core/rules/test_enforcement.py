"""Rules 17 and 18: an installation that observes or does not enforce, and a store that is away."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
from penstock.config import Concurrency
from penstock.engine import Engine
from penstock.errors import ClaimError, StoreUnavailable, WaitTimeout
from penstock.hooks import plugin_manager
from penstock.settings import Settings
from penstock.store.contract import Event
from penstock.store.memory import MemoryStore
from situations import CALM, Configure, NewEngine, granted, held, queued, refused, waits

OBSERVING = replace(CALM, enforcement="observe")


@pytest.fixture
def observer(new_engine: NewEngine) -> Engine:
    """An installation that observes."""
    return new_engine(host="airflow", settings=OBSERVING)


# -- 17 ----------------------------------------------------------------------------------------------------------------


def test_who_observes_takes_a_free_slot_as_everybody_does(
    observer: Engine, engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": {"a": 2}})
    lease = observer.acquire(observer.claim("a"))
    assert [slot.slot for slot in lease.slots] == [1]
    assert lease.observed == ()
    assert granted(engine.try_acquire(engine.claim("a")))
    assert refused(engine.try_acquire(engine.claim("a")))


def test_who_observes_never_waits_is_counted_and_bars_those_who_enforce(
    observer: Engine, engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": {"a": 2, "b": 1}})
    enforced = engine.acquire(engine.claim("a:2"))
    leases = [observer.acquire(observer.claim("a", "b")) for _ in range(2)]
    assert [lease.observed for lease in leases] == [("pool:a",), ("pool:a", "pool:b")]
    assert (held(engine, "pool:a"), held(engine, "pool:b")) == (4, 2), "more than the capacity"
    waiter = queued(engine, "a")
    enforced.release()
    assert waits(waiter), "what the observers hold is the whole capacity"
    leases[0].release()
    assert granted(waiter.step())
    leases[1].release()
    assert (held(engine, "pool:a"), held(engine, "pool:b")) == (1, 0)
    assert granted(engine.try_acquire(engine.claim("a")))
    assert refused(engine.try_acquire(engine.claim("a"))), "the rows above the capacity are gone"


def test_what_would_have_waited_and_for_what_is_recorded_shown_and_logged(
    observer: Engine, engine: Engine, configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "penstock")
    configure(pools={"limits": {"a": 1}}, runs={"max_concurrent_runs": 0})
    engine.acquire(engine.claim("a", op_id="holder"))
    run = observer.acquire(observer.run_claim("r", "a"))
    (row,) = [row for row in engine.store.history() if row.event is Event.OBSERVED]
    assert (row.label, row.detail) == ("airflow/process r", "would have waited for pool:a, runs")
    assert {row["label"]: row["observed"] for row in engine.status()["leases"]} == {
        "process/process holder": False,
        "airflow/process r": True,
    }
    assert run.observed == ("pool:a", "runs")
    assert "airflow/process r would have waited for pool:a, runs: this installation only observes" in caplog.text


@pytest.mark.parametrize("on_blocked", ["wait", "skip", "fail"])
def test_who_observes_is_neither_skipped_nor_refused_nor_impossible(
    observer: Engine, configure: Configure, on_blocked: Any
) -> None:
    configure(pools={"limits": {"a": 1, "closed": 0}}, ops={"max_concurrent": 0})
    with observer.acquire(observer.run_claim("r"), on_blocked=on_blocked):
        claim = observer.claim("a:3", "closed", run_id="r", op_id="o", in_run=True)
        lease = observer.acquire(claim, on_blocked=on_blocked)
        assert lease.observed == ("pool:a", "pool:closed", "run_ops:airflow/process/r")
        assert held(observer, "pool:a") == 3
        lease.release()
    assert observer.snapshot().claims == ()


def test_who_observes_takes_late_pools_of_its_run(observer: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": {"limit": 0, "granularity": "run"}}})
    run = observer.acquire(observer.run_claim("r"))
    assert observer.acquire(observer.claim("a", run_id="r", op_id="o", in_run=True)).slots == ()
    assert held(observer, "pool:a") == 1
    run.release()
    assert held(observer, "pool:a") == 0


def test_who_does_not_enforce_asks_the_store_nothing(
    store: Any, new_engine: NewEngine, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(pools={"limits": {"a": 0}})
    off = new_engine(settings=replace(CALM, enforcement="off"))
    monkeypatch.setattr(store, "acquire", None)
    monkeypatch.setattr(store, "open_session", None)
    with off.hold("a", run_id="r") as lease:
        assert lease.unlimited
        assert lease.fences == {}
        assert not lease.lost
    assert held(off, "pool:a") == 0


def test_enforcement_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_ENFORCEMENT", "observe")
    monkeypatch.setenv("PENSTOCK_ON_STORE_ERROR", "fail")
    settings = Settings.from_environment()
    assert (settings.enforcement, settings.on_store_error) == ("observe", "fail")
    monkeypatch.setenv("PENSTOCK_ENFORCEMENT", "maybe")
    with pytest.raises(ClaimError, match="PENSTOCK_ENFORCEMENT='maybe': one of enforce, observe, off is expected"):
        Settings.from_environment()


# -- 18 ----------------------------------------------------------------------------------------------------------------


class Away(MemoryStore):
    """A store that does not answer for so many questions."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.left = times

    def acquire(self, *arguments: Any, **named: Any) -> Any:
        if self.left:
            self.left -= 1
            raise StoreUnavailable("the store is away")
        return super().acquire(*arguments, **named)


def engine_on(store: Any, **settings: Any) -> Engine:
    concurrency = Concurrency.model_validate({"pools": {"limits": {"a": 1}}})
    store.configure(concurrency.document(), expected_version=0, by="x", origin="y")
    return Engine(store, settings=Settings(**settings), plugins=plugin_manager())


def test_on_store_error_wait_backs_off_until_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    with engine_on(store := Away(2)) as engine, engine.hold("a") as lease:
        assert not lease.unlimited
        assert held(engine, "pool:a") == 1
        assert store.left == 0
    assert caplog.text.count("the store is away, nothing is admitted meanwhile") == 2


def test_on_store_error_wait_gives_up_after_its_time_with_a_clear_error() -> None:
    with engine_on(Away(10**6), store_retry_seconds=0.3) as engine:
        with pytest.raises(StoreUnavailable, match="the store is away"):
            engine.acquire(engine.claim("a"))
        with pytest.raises(WaitTimeout, match=r"no slot within 0\.1 s"):
            engine.acquire(engine.claim("a"), wait_timeout_seconds=0.1)


def test_on_store_error_fail_raises_at_once() -> None:
    with engine_on(store := Away(1), on_store_error="fail") as engine:
        with pytest.raises(StoreUnavailable):
            engine.acquire(engine.claim("a"))
        assert store.left == 0


def test_on_store_error_run_goes_on_without_limits_and_says_so_loudly(caplog: pytest.LogCaptureFixture) -> None:
    with engine_on(Away(1), on_store_error="run") as engine:
        with engine.hold("a") as lease:
            assert lease.unlimited
            assert engine.snapshot().claims == ()
        with engine.hold("a") as lease:
            assert not lease.unlimited
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "running WITHOUT LIMITS (on_store_error=run)" in record.getMessage()
