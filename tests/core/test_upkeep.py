"""What an engine does beside its claims: nobody's beat and nobody's wait stands behind it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from penstock import janitor
from penstock.config import Concurrency
from penstock.engine import Engine
from penstock.hookspecs import hookimpl
from penstock.settings import Settings
from penstock.store import reaping
from penstock.store.contract import ClaimRow
from situations import until

NewEngine = Callable[..., Engine]
Configure = Callable[..., None]
SHORT = Settings(session_ttl_seconds=5.0, sweep_seconds=0.05, store_retry_seconds=0)
"""A session is lost when no beat goes out for 4 s."""
LONGER_SECONDS = 5.0


class SlowHost:
    """One that takes longer than a lease lasts without a beat."""

    def __init__(self) -> None:
        self.asked = self.answered = 0

    @hookimpl
    def penstock_holder_alive(self, claim: ClaimRow) -> bool:
        self.asked += 1
        time.sleep(LONGER_SECONDS)
        self.answered += 1
        return True


def test_a_slow_host_costs_nobody_a_lease(new_engine: NewEngine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    engine = new_engine(host := SlowHost(), settings=SHORT)
    engine.request(engine.run_claim("r"), probed=True).step()
    with engine.hold("a") as lease:
        until(lambda: host.answered)
        assert not lease.lost


def test_a_slow_host_keeps_nobody_waiting(new_engine: NewEngine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    other, engine = new_engine(), new_engine(host := SlowHost(), settings=SHORT)
    engine.request(engine.run_claim("r"), probed=True).step()
    held = other.acquire(other.claim("a"))
    waiting = engine.request(engine.claim("a"))
    waiting.step()
    until(lambda: host.asked)
    began = time.monotonic()
    held.release()
    waiting.acquire(wait_timeout_seconds=10).release()
    assert time.monotonic() - began < LONGER_SECONDS - 0.5


def test_an_engine_ends_while_a_host_is_asked(new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(janitor, "CLOSE_SECONDS", 0.1)
    engine = new_engine(host := SlowHost(), settings=SHORT)
    engine.request(engine.run_claim("r"), probed=True).step()
    until(lambda: host.asked)
    engine._session.close()
    began = time.monotonic()
    engine.janitor.close()
    assert time.monotonic() - began < LONGER_SECONDS - 0.5
    until(lambda: host.answered)
    assert host.asked == 1
    engine.janitor.probe()  # an engine that is used again
    assert host.answered == 2


def test_limits_that_somebody_left_unsettled_cost_nobody_a_lease(
    new_engine: NewEngine, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He was killed between writing the configuration and bringing the limits in line, and there are many."""
    monkeypatch.setattr(janitor, "UNSETTLED_SECONDS", 0.1)
    names = {f"p-{number}": 1 for number in range(10)}
    configure(pools={"limits": names})
    engine = new_engine(settings=SHORT)
    settle = engine.store.settle

    def slowly(*arguments: Any, **options: Any) -> bool:
        time.sleep(LONGER_SECONDS / len(names))
        return settle(*arguments, **options)

    monkeypatch.setattr(engine.store, "settle", slowly)
    with engine.hold("p-0") as lease:
        block = Concurrency.model_validate({"pools": {"limits": dict.fromkeys(names, 2)}})
        engine.store.configure(block.document(), expected_version=1, by="x", origin="y")  # and killed here
        until(lambda: engine.store.sweep().settled)
        assert not lease.lost
    assert {row.capacity for row in engine.store.limit_rows()} == {2}


def test_others_leave_whoever_changes_the_configuration_his_time(new_engine: NewEngine, configure: Configure) -> None:
    engine = new_engine(settings=SHORT)
    engine.store.configure(Concurrency().document(), expected_version=0, by="x", origin="y")
    for _ in range(3):
        engine.janitor._sweep_at = 0.0
        engine.janitor.sweep_if_due()
    assert engine.janitor._beside is None
    assert not engine.store.sweep().settled
    engine.janitor.upkeep()  # a `penstock janitor` does all that is to be done
    assert engine.store.sweep().settled


def test_all_runs_are_asked_about_however_slow_a_host_is(
    new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(janitor, "PROBE_SECONDS", 0.01)
    engine, asked = new_engine(), list[str | None]()
    for run_id in ("1", "2", "3"):
        engine.request(engine.run_claim(run_id), probed=True).step()

    def slowly(row: ClaimRow) -> None:
        asked.append(row.claim.run_id)
        time.sleep(0.02)

    for number in range(1, 7):
        engine.janitor.probe(slowly)
        assert len(asked) == number
    assert sorted(filter(None, asked[:3])) == sorted(filter(None, asked[3:])) == ["1", "2", "3"]


def test_old_history_goes_a_little_at_a_time(
    engine: Engine, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaping, "PRUNED", 3)
    configure(pools={"limits": {"a": 1}})
    for _ in range(5):
        engine.acquire(engine.claim("a")).release()
    later = engine.store.snapshot_time() + 1
    assert engine.store.prune(history_before=later, idle_before=0)["history"] >= 10
    assert engine.store.history() == ()


def test_upkeep_that_fails_is_told_and_done_again(
    new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine, tried = new_engine(settings=Settings(upkeep_seconds=0.0, sweep_seconds=0.0)), list[int]()

    def fail() -> None:
        tried.append(1)
        raise RuntimeError("the history is broken")

    monkeypatch.setattr(engine.janitor, "prune", fail)

    def twice() -> bool:
        engine.janitor.sweep_if_due()
        return len(tried) >= 2

    until(twice)
    assert "upkeep met an error, it is done later" in caplog.text
    assert "the history is broken" in caplog.text
