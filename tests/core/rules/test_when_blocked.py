"""Rules 10 and 13: what becomes of a claim for which there is no room, now or ever."""

from __future__ import annotations

from typing import Any

import pytest
from penstock.engine import Engine
from penstock.errors import Blocked, ImpossibleClaim, Skipped, WaitTimeout
from penstock.hookspecs import hookimpl
from penstock.store.contract import Event
from situations import (
    CALM,
    Configure,
    NewEngine,
    granted,
    held,
    in_threads,
    pass_time,
    queued,
    reap,
    refused,
    waiter_states,
    waiting,
    waits,
)

HOUR = 3600


@pytest.fixture
def full(engine: Engine, configure: Configure) -> Engine:
    """An engine on which no run and no op in pool `a` finds room."""
    configure(pools={"limits": {"a": 1}}, runs={"max_concurrent_runs": 1})
    engine.acquire(engine.run_claim("before"))
    engine.acquire(engine.claim("a"))
    return engine


# -- 10 ----------------------------------------------------------------------------------------------------------------


def test_an_impossible_claim_is_refused_at_once_with_the_reason_and_leaves_nothing(
    engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": {"a": 2}})
    with pytest.raises(ImpossibleClaim, match=r"a: 0 of 2 held\. Ask for less, or raise the limit") as raised:
        engine.acquire(engine.claim("a:3"))
    assert [(reason.limit, reason.needed, reason.capacity) for reason in raised.value.reasons] == [("pool:a", 3, 2)]
    assert refused(engine.try_acquire(engine.claim("a:3"))).impossible
    assert engine.snapshot().claims == ()


def test_a_waiter_that_a_shrink_made_impossible_is_shown_as_such_and_waits_for_a_change(
    engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": {"a": 3}})
    holder = engine.acquire(engine.claim("a"))
    wide, narrow = queued(engine, "a:3"), engine.request(engine.claim("a"))
    configure(pools={"limits": {"a": 2}})
    assert waits(wide)
    assert waiter_states(engine) == {wide.claim_id: "impossible"}
    holder.release()
    assert waits(wide)
    assert granted(narrow.step()), "it bars nobody"
    configure(pools={"limits": {"a": 4}})
    assert granted(wide.step())
    assert held(engine, "pool:a") == 4


def test_a_waiter_that_became_impossible_leaves_at_its_time_out(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 2}})
    holder = engine.acquire(engine.claim("a"))
    request = engine.request(engine.claim("a:2"))
    assert waits(request)
    configure(pools={"limits": {"a": 1}})
    holder.release()
    with pytest.raises(WaitTimeout, match="wait longer, or raise the limit"):
        request.acquire(wait_timeout_seconds=0.05)
    assert waiting(engine, "pool:a") == 0


def test_a_closed_limit_makes_waiters_however_much_they_ask_for(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 0}})
    wide = queued(engine, "a:5")
    assert [str(reason) for reason in engine.reasons(wide.claim_id)] == ["a: closed (limit 0)"]
    assert waiter_states(engine) == {wide.claim_id: "waiting"}
    assert not refused(engine.try_acquire(engine.claim("a:5"))).impossible
    configure(pools={"limits": {"a": 5}})
    assert granted(wide.step())


# -- 13 ----------------------------------------------------------------------------------------------------------------


def test_fail_leaves_neither_waiter_nor_mark(full: Engine) -> None:
    for claim in (full.claim("a"), full.run_claim("r")):
        with pytest.raises(Blocked, match="1 of 1 held") as raised:
            full.acquire(claim, on_blocked="fail")
        assert len(raised.value.reasons) == 1
    assert full.status()["waiters"] == []
    assert len(full.snapshot().claims) == 2


@pytest.mark.parametrize(("on_blocked", "error"), [("fail", Blocked), ("skip", Skipped)])
def test_an_op_whose_run_waits_is_refused_for_what_its_run_waits_for(
    new_engine: NewEngine, full: Engine, on_blocked: Any, error: type[Exception]
) -> None:
    told: list[tuple[Any, ...]] = []

    class Plugin:
        @hookimpl
        def penstock_refused(self, reasons: Any, why: str) -> None:
            told.append((why, [reason.limit for reason in reasons]))

    assert waits(full.request(full.run_claim("r")))
    engine = new_engine(Plugin(), settings=CALM)
    with pytest.raises(error, match="r o: runs: 1 of 1 held by process/process before"):
        engine.acquire(engine.claim("free", run_id="r", op_id="o", in_run=True), on_blocked=on_blocked)
    assert told == [("blocked" if on_blocked == "fail" else "skipped", ["runs"])]


def test_a_claim_that_another_process_has_is_refused_or_waits_for_that(new_engine: NewEngine) -> None:
    one, two = (new_engine(settings=CALM) for _ in range(2))
    lease = one.acquire(one.claim("a", run_id="r", op_id="o"))
    again = two.claim("a", run_id="r", op_id="o")
    with pytest.raises(Blocked, match="r o: another process has the same claim"):
        two.acquire(again, on_blocked="fail")
    with pytest.raises(WaitTimeout, match="another process has the same claim"):
        two.acquire(again, wait_timeout_seconds=0.05)
    lease.release()
    assert granted(two.try_acquire(again))


def test_an_op_that_is_skipped_leaves_nothing(full: Engine) -> None:
    with pytest.raises(Skipped, match="a: 1 of 1 held"):
        full.acquire(full.claim("a", run_id="r", op_id="o"), on_blocked="skip")
    assert len(full.snapshot().claims) == 2


@pytest.mark.parametrize("later", ["wait", "skip", "fail"])
def test_a_skipped_run_stays_skipped_for_its_later_ops_though_there_is_room_by_then(
    full: Engine, new_engine: NewEngine, later: Any
) -> None:
    with pytest.raises(Skipped, match="runs: 1 of 1 held"):
        full.acquire(full.run_claim("r"), on_blocked="skip")
    assert full.status()["waiters"] == []
    assert full.end_run("before")
    for engine in (full, new_engine()):
        with pytest.raises(Skipped, match="its run was skipped"):
            engine.acquire(engine.run_claim("r"), on_blocked=later)
        with pytest.raises(Skipped, match="its run was skipped"):
            engine.acquire(engine.claim("b", run_id="r", op_id="o", in_run=True), on_blocked=later)
    assert (held(full, "runs"), held(full, "pool:b")) == (0, 0)
    assert granted(full.try_acquire(full.run_claim("another")))
    assert [row.label for row in full.store.history() if row.event is Event.SKIPPED] == ["process/process r"]


@pytest.mark.parametrize("end", ["its end", "a day"])
def test_a_skip_is_remembered_to_the_runs_end_or_for_a_day(store: Any, full: Engine, end: str) -> None:
    with pytest.raises(Skipped):
        full.acquire(full.run_claim("r"), on_blocked="skip")
    assert full.end_run("before")
    if end == "its end":
        assert full.end_run("r")
    else:
        pass_time(store, 23 * HOUR)
        reap(store)
        assert refused(full.try_acquire(full.run_claim("r"))).skipped
        pass_time(store, 2 * HOUR)
        reap(store)
    assert granted(full.try_acquire(full.run_claim("r")))


@pytest.mark.parametrize("on_blocked", ["skip", "fail"])
def test_of_many_at_once_with_room_for_one_exactly_one_wins(
    new_engine: NewEngine, configure: Configure, on_blocked: Any
) -> None:
    """The users' "skip if another run is already occurring", made atomic."""
    configure(runs={"tag_concurrency_limits": [{"key": "job", "value": "nightly", "limit": 1}]})
    engines = [new_engine() for _ in range(4)]

    def come(number: int) -> bool:
        engine = engines[number % 4]
        try:
            engine.acquire(engine.run_claim(f"{turn}/{number}", tags={"job": "nightly"}), on_blocked=on_blocked)
        except (Skipped, Blocked):
            return False
        return True

    for turn in range(4):
        assert sum(in_threads(8, come)) == 1
        for number in range(8):
            engines[0].end_run(f"{turn}/{number}")
    assert waiting(engines[0], "run_tag:job=nightly") == 0


@pytest.mark.parametrize("skip", [False, True])
def test_the_first_claim_of_a_process_is_not_refused_for_one_who_died_unseen(
    store: Any, new_engine: NewEngine, configure: Configure, skip: bool
) -> None:
    """As of a cron job that was killed, when the next one asks not to wait and nobody has swept in between."""
    configure(pools={"limits": {"a": 1}}, runs={"max_concurrent_runs": 1})
    dead = new_engine()
    dead.acquire(dead.run_claim("yesterday"))
    dead.acquire(dead.claim("a"))
    dead._session._stop.set()
    pass_time(store, dead.settings.session_ttl_seconds + store.times.grace_seconds + 1)
    if hasattr(store, "_jumps"):
        store._jumps = type(store._jumps)()
    engine = new_engine()
    granted(engine.request(engine.run_claim("today")).try_step(skip=skip))
    granted(engine.request(engine.claim("a")).try_step(skip=skip))
