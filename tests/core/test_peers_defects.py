"""Bugs of other systems' limits that we were warned by, each named after the report of it."""

from __future__ import annotations

import threading
from typing import Any

import penstock
import pytest
from penstock import changes
from penstock.config import Concurrency
from penstock.engine import Engine
from penstock.errors import StoreUnavailable
from penstock.settings import Settings
from penstock.store.contract import ClaimState, Mode, Result
from penstock.store.contract import Owner as Session
from situations import (
    CALM,
    Configure,
    NewEngine,
    granted,
    held,
    in_threads,
    pass_time,
    queued,
    refused,
    until,
    waiter_states,
    waiting,
    waits,
)

sql_only = pytest.mark.parametrize("store_kind", ["sqlite", "postgresql", "mariadb"], indirect=True)


@pytest.fixture
def engine(new_engine: NewEngine) -> Engine:
    """One engine that does nothing by itself."""
    return new_engine(settings=CALM)


def test_solid_queue_761_a_double_release_frees_no_slot_twice(
    store: Any, new_engine: NewEngine, engine: Engine, configure: Configure
) -> None:
    """A holder taken for dead came back and released its semaphore a second time: the counter rose above the limit."""
    configure(pools={"limits": {"a": 1}})
    dead = new_engine()
    lease = dead.acquire(dead.claim("a"))
    dead._session._stop.set()  # its beats do not reach the store any more
    pass_time(store, 34)
    store.sweep()
    successor = granted(engine.try_acquire(engine.claim("a")))
    assert not store.release(lease.claim_id, lease.session_id)
    lease.release()
    lease.holds = 1
    lease.release()
    assert held(engine, "pool:a") == 1
    assert refused(engine.try_acquire(engine.claim("a")))
    assert store.release(successor.claim_id, successor.session_id)
    assert not store.release(successor.claim_id, successor.session_id)
    assert len([each for each in range(3) if hasattr(engine.try_acquire(engine.claim("a")), "lease")]) == 1


def test_solid_queue_689_an_enqueue_beside_a_release_is_not_forgotten(engine: Engine, configure: Configure) -> None:
    """The release looked for waiters before the enqueue had been committed, and then nobody looked any more."""
    configure(pools={"limits": {"a": 1}})
    for _ in range(25):
        holder = engine.acquire(engine.claim("a"))
        request = engine.request(engine.claim("a"))
        in_threads(2, lambda number, holder=holder, request=request: holder.release() if number else request.step())
        # Nothing else runs here that would look: no sweep, no poll.
        (row,) = engine.snapshot().claims
        assert row.state in (ClaimState.GRANTED, ClaimState.HELD)
        lease = granted(request.step())
        lease.holds = 1  # the step beside the release may have had it already
        lease.release()


@sql_only
def test_hatchet_4778_the_order_of_commits_decides_not_that_of_numbers(
    store_url: str, engine: Engine, configure: Configure
) -> None:
    """What ran was looked for among the first N rows by insert number; one that was committed late went uncounted.

    Here a claim that began first and is committed last neither overbooks nor gets lost: slots are counted, not ranks.
    """
    configure(pools={"limits": {"a": 2}})
    with penstock.connect(store_url, settings=CALM) as late:
        # It came first by its own clock (its rank is the lowest), and is the last to be written.
        late.store.clock_shift = -60_000_000  # type: ignore[attr-defined]
        first = [engine.acquire(engine.claim("a")) for _ in range(2)]
        early_rank = late.request(late.claim("a"))
        later = queued(engine, "a")
        assert waits(early_rank)
        assert held(engine, "pool:a") == 2
        for lease, request in zip(first, (early_rank, later), strict=True):
            lease.release()
            assert held(engine, "pool:a") == 2
            assert granted(request.step())
        assert refused(engine.try_acquire(engine.claim("a")))


@pytest.mark.parametrize("head", ["not yet eligible", "parked", "impossible now", "barred elsewhere"])
def test_procrastinate_1599_a_head_that_cannot_go_stalls_nobody_behind_it(
    store: Any, engine: Engine, configure: Configure, head: str
) -> None:
    """A job that was to run later held up every job of its lock that was ready now."""
    configure(pools={"limits": {"a": 2, "b": 1}})
    on_b = engine.acquire(engine.claim("b"))
    holders = [engine.acquire(engine.claim("a")) for _ in range(2)]
    wants = {"impossible now": ("a:2",), "barred elsewhere": ("a", "b")}.get(head, ("a",))
    first = queued(engine, *wants, run_id="r", op_id="head", priority=60)
    if head == "not yet eligible":
        first.hand_over(ticket_seconds=7200, eligible_after_seconds=3600)
    if head == "parked":
        holders.pop().release()  # its grant, which it does not acknowledge
        pass_time(store, 3)
        store.sweep()
        assert waiter_states(engine)[first.claim_id] == "parked"
        holders.append(granted(engine.try_acquire(engine.claim("a"))))
    if head == "impossible now":
        configure(pools={"limits": {"a": 1, "b": 1}})
        assert waits(first)
    behind = queued(engine, "a")
    for holder in holders:
        holder.release()
    assert granted(behind.step())
    on_b.release()


def test_prefect_21794_a_release_that_failed_is_told_and_made_good(
    store: Any, engine: Engine, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of a release was swallowed, the run went on, and the slot stayed in use for ever."""
    configure(pools={"limits": {"a": 1}})
    lease, waiter = engine.acquire(engine.claim("a")), queued(engine, "a")

    def away(*_: object) -> bool:
        raise StoreUnavailable("the store is away")

    with monkeypatch.context() as patch:
        patch.setattr(store, "release", away)
        with pytest.raises(StoreUnavailable, match="the store is away"):
            lease.release()
    assert held(engine, "pool:a") == 1
    assert waits(waiter)
    assert store.beat(engine.session_id(), engine.leases.known)
    assert granted(waiter.step())
    assert held(engine, "pool:a") == 1


def test_a_runs_release_that_failed_is_made_good_as_well(
    new_engine: NewEngine, engine: Engine, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run belongs to several sessions: it was nobody's to end, and stayed for as long as its process lived."""
    configure(runs={"max_concurrent_runs": 1})
    worker = new_engine(settings=Settings(session_ttl_seconds=3.0))
    lease = worker.acquire(worker.run_claim("r"))
    again = worker.acquire(worker.run_claim("r"))
    again.release()

    def away(*_: object) -> bool:
        raise StoreUnavailable("the store is away")

    with monkeypatch.context() as patch:
        patch.setattr(worker.store, "release", away)
        with pytest.raises(StoreUnavailable, match="the store is away"):
            lease.release()
        assert held(engine, "runs") == 1
    until(lambda: held(engine, "runs") == 0)


def test_what_is_joined_and_given_up_is_given_back(engine: Engine, configure: Configure) -> None:
    """A wait that was cancelled just as it joined its run's lease left that counted once too often."""
    configure(runs={"max_concurrent_runs": 1})
    lease = engine.acquire(engine.run_claim("r"))
    second = engine.request(engine.run_claim("r"))
    assert granted(second.step()) is lease
    second.withdraw()
    assert held(engine, "runs") == 1
    lease.release()
    assert held(engine, "runs") == 0


def test_redisson_6664_a_release_wakes_by_weight(engine: Engine, configure: Configure) -> None:
    """A release of several permits woke as if for one: who waited for more than one slept on to its time-out."""
    configure(pools={"limits": {"a": 4}})
    whole = engine.acquire(engine.claim("a:4"))
    wide = [queued(engine, "a:2") for _ in range(2)]
    whole.release()
    assert [waits(request) for request in wide] == [False, False]
    assert held(engine, "pool:a") == 4


def test_redisson_6664_who_waits_for_several_slots_wakes_when_the_last_is_free(
    engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": {"a": 3}})
    holders = [engine.acquire(engine.claim("a")) for _ in range(3)]

    def one(number: int) -> float:
        if number == 0:
            with engine.acquire(engine.claim("a:3"), wait_timeout_seconds=60) as lease:
                return lease.waited_seconds
        until(lambda: waiting(engine, "pool:a") == 1)
        for holder in holders:
            holder.release()
        return 0.0

    assert max(in_threads(2, one)) < 25, "woken, not by its own look after 30 s"


def test_airflow_45636_a_full_pool_crowds_out_no_empty_one(engine: Engine, configure: Configure) -> None:
    """The scheduler read the first 32 ready tasks; a thousand of higher priority for a full pool hid an empty pool."""
    configure(pools={"limits": {"full": 1, "gate": 0, "empty": 5}})
    busy = engine.acquire(engine.claim("full"))
    crowd = [queued(engine, "full", priority=100) for _ in range(130)]
    behind = [queued(engine, "gate", "empty") for _ in range(3)]
    assert granted(engine.request(engine.claim("empty")).step()), "a newcomer"
    configure(pools={"limits": {"full": 1, "gate": 5, "empty": 5}})
    assert [waits(request) for request in behind] == [False] * 3, "and those who waited"
    busy.release()
    assert [waits(request) for request in crowd[:2]] == [False, True]


def test_prefect_23183_a_release_wakes_a_waiter_of_the_same_process(engine: Engine, configure: Configure) -> None:
    """A released slot lay idle until the waiters' Retry-After was over, up to a minute later."""
    configure(pools={"limits": {"a": 1}})
    turns, taken = 10, threading.Semaphore(0)
    holder = engine.acquire(engine.claim("a"))

    def take(number: int) -> float:
        if number == 0:
            until(lambda: waiting(engine, "pool:a") == turns)
            holder.release()
            return 0.0
        with engine.acquire(engine.claim("a"), wait_timeout_seconds=120) as lease:
            taken.release()
            return lease.waited_seconds

    waited = in_threads(turns + 1, take)
    assert sum(taken.acquire(blocking=False) for _ in range(turns)) == turns
    assert max(waited) < turns * 3, "ten hand-overs, none of them by a look of the waiter itself after 30 s"


@sql_only
def test_argo_11098_a_restart_drops_no_holder(store_url: str, engine: Engine, configure: Configure) -> None:
    """After a restart the controller rebuilt its locks in memory and missed the first holder: two ran under a mutex."""
    configure(pools={"limits": {"a": 1, "b": 2}}, runs={"max_concurrent_runs": 1})
    granted(engine.request(engine.run_claim("r")).step())
    for pool in ("a", "b"):
        granted(engine.request(engine.claim(pool, run_id="r", op_id=pool, in_run=True)).step())
    waiter = queued(engine, "a")
    before = engine.status()["leases"]
    with penstock.connect(store_url, settings=CALM) as restarted:
        restarted.janitor.upkeep()
        changes.settle_all(restarted)
        assert restarted.status()["leases"] == before
        assert refused(restarted.try_acquire(restarted.claim("a")))
        assert refused(restarted.try_acquire(restarted.run_claim("s")))
        assert granted(restarted.try_acquire(restarted.claim("b")))
        assert refused(restarted.try_acquire(restarted.claim("b")))
    assert waits(waiter)


@sql_only
def test_argo_11098_a_restart_in_the_middle_of_a_change_drops_no_holder(
    store_url: str, engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": {"a": 2}})
    for _ in range(2):
        engine.acquire(engine.claim("a"))
    shrunk = Concurrency.model_validate({"pools": {"limits": {"a": 1}}})
    engine.store.configure(shrunk.document(), expected_version=1, by="x", origin="y")  # and killed here
    with penstock.connect(store_url, settings=CALM) as restarted:
        version, concurrency = restarted.configuration()
        claim, owner = restarted.claim("a"), Session(restarted.session_id())
        demands = restarted.demands(claim, concurrency)
        outcome = restarted.store.acquire(claim, demands, version=version, owner=owner, mode=Mode.TRY)
        assert outcome.result is Result.NO_ROOM
        restarted.janitor.upkeep()
        assert held(restarted, "pool:a") == 2
        assert refused(restarted.try_acquire(restarted.claim("a")))
