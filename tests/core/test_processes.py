"""One engine among forks, spawned processes, threads and event loops; many waiters on few connections."""

from __future__ import annotations

import asyncio
import faulthandler
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import penstock
import pytest
from claimers import hold_until_told, wait_and_tell
from configuring import configure
from penstock import StoreUnavailable
from penstock.decision import Granted
from penstock.engine import Engine
from penstock.settings import Settings
from penstock.store.asking import CONNECTIONS
from situations import Gauge, in_threads
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

BOUND = CONNECTIONS + 2
"""Connections of one engine: those for claims, one for beats and polls, one to listen."""
WAITERS = {"postgresql": 1000, "mariadb": 300, "sqlite": 300}
sql_stores = pytest.mark.parametrize("store_kind", ["sqlite", "postgresql", "mariadb"], indirect=True)


def in_child(work: Callable[[], object]) -> bool:
    """Do the work in a forked child; whether it was done and said yes. One that hangs says where, and ends."""
    if (pid := os.fork()) == 0:
        code = 1
        faulthandler.dump_traceback_later(30, exit=True, file=sys.__stderr__)
        try:
            code = 0 if work() else 2
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0


def nothing_left(engine: Engine) -> bool:
    return not any(row.held or row.waiting for row in engine.store.limit_rows()) and not engine.snapshot().claims


@sql_stores
def test_a_forked_child_neither_has_nor_gives_back_its_parents_lease(store_url: str) -> None:
    with penstock.connect(store_url) as engine:
        configure(engine, pools={"limits": {"a": 1, "b": 1}})
        with engine.hold("a") as lease:

            def child() -> bool:
                lost = lease.lost
                lease.release()  # as the end of the parent's block does in a child that leaves it
                with engine.hold("b") as own:
                    known = own.session_id != lease.session_id and not own.lost
                refused = not hasattr(engine.try_acquire(engine.claim("a")), "lease")
                engine.close()
                return lost and known and refused

            assert in_child(child)
            assert not lease.lost
            assert [row.held for row in engine.store.limit_rows() if row.key == "pool:a"] == [1]
        assert nothing_left(engine)


@sql_stores
def test_forks_while_other_threads_claim(store_url: str) -> None:
    """Whatever lock or connection a thread has in hand at that moment, the child can claim."""
    stop = threading.Event()
    with penstock.connect(store_url) as engine:
        configure(engine, pools={"limits": {"busy": 2, "child": 1}})

        def churn(_: int) -> None:
            while not stop.is_set():
                with engine.hold("busy"):
                    pass

        def child() -> bool:
            with engine.hold("child", wait_timeout_seconds=20):
                pass
            engine.close()
            return True

        with ThreadPoolExecutor(3) as threads:
            churning = [threads.submit(churn, number) for number in range(3)]
            try:
                assert all(in_child(child) for _ in range(8))
            finally:
                stop.set()
            for done in churning:
                done.result()
        assert nothing_left(engine)


@sql_stores
def test_spawned_processes_share_the_limits(store_url: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    with penstock.connect(store_url) as engine, spawn.Manager() as manager:
        configure(engine, pools={"limits": {"a": 1}})
        held, told = manager.Event(), manager.Event()
        with spawn.Pool(1) as pool:
            child = pool.apply_async(hold_until_told, (store_url, "a", held, told))
            assert held.wait(60)
            assert not hasattr(engine.try_acquire(engine.claim("a")), "lease")
            told.set()
            child.get(60)
        decision = engine.try_acquire(engine.claim("a"))
        assert isinstance(decision, Granted)
        decision.lease.release()


def test_forty_threads_on_one_engine(engine: Engine, configure: Callable[..., None]) -> None:
    configure(pools={"limits": {"a": 3}})
    inside = Gauge()

    def work(_: int) -> None:
        for _ in range(3):
            with engine.hold("a", wait_timeout_seconds=60), inside:
                pass

    in_threads(40, work)
    assert inside.entered == 120
    assert inside.most <= 3
    assert nothing_left(engine)


def test_several_event_loops_in_several_threads(engine: Engine, configure: Callable[..., None]) -> None:
    configure(pools={"limits": {"a": 2}})
    inside = Gauge()

    async def one() -> None:
        async with engine.hold_async("a", wait_timeout_seconds=60):
            with inside:
                await asyncio.sleep(0)

    async def loop() -> None:
        await asyncio.gather(*(one() for _ in range(10)))

    in_threads(4, lambda _: asyncio.run(loop()))
    assert inside.entered == 40
    assert inside.most <= 2
    assert nothing_left(engine)


def test_a_loop_whose_own_threads_are_all_busy_still_gets_and_frees_slots(
    engine: Engine, configure: Callable[..., None]
) -> None:
    configure(pools={"limits": {"a": 1}})
    release = threading.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        busy = loop.run_in_executor(None, release.wait, 60)
        async with asyncio.timeout(30), engine.hold_async("a"):
            pass
        async with asyncio.timeout(30), engine.hold_async("a"):
            release.set()
        assert await busy

    asyncio.run(main())


@pytest.mark.parametrize("pause_seconds", [0.0, 0.001, 0.005, 0.02, 0.05, 0.1])
def test_a_cancelled_task_leaves_neither_waiter_nor_lease(
    engine: Engine, configure: Callable[..., None], pause_seconds: float
) -> None:
    """Cancelled at whatever step it is: before it asks, while it asks, while it waits, while it is being granted."""
    configure(pools={"limits": {"a": 1}})

    async def one() -> None:
        async with engine.hold_async("a"):
            await asyncio.sleep(pause_seconds)

    async def main() -> None:
        tasks = [asyncio.create_task(one()) for _ in range(8)]
        await asyncio.sleep(pause_seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert all(task.done() for task in tasks)

    asyncio.run(main())
    # What undoes them is on its way behind these, in the same threads.
    for done in [engine.in_thread(lambda: None) for _ in range(20)]:
        done.result(30)
    with engine.hold("a", wait_timeout_seconds=20):
        pass
    deadline = time.monotonic() + 10
    while not nothing_left(engine):
        assert time.monotonic() < deadline, engine.snapshot().claims
        time.sleep(0.02)


def test_generators_and_errors_free_their_slots(engine: Engine, configure: Callable[..., None]) -> None:
    configure(pools={"limits": {"a": 1}})

    def numbers() -> Any:
        with engine.hold("a"):
            yield 1
            yield 2

    generator = numbers()
    assert next(generator) == 1
    generator.close()
    assert nothing_left(engine)
    with pytest.raises(ZeroDivisionError), engine.hold("a"):
        raise ZeroDivisionError

    async def stream() -> Any:
        async with engine.hold_async("a"):
            yield 1

    async def main() -> None:
        begun = stream()
        assert await anext(begun) == 1
        await begun.aclose()

    asyncio.run(main())
    assert nothing_left(engine)


def test_a_wait_given_up_while_the_store_is_away_is_ended_by_the_next_beat(
    store: Any, engine: Engine, configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(pools={"limits": {"a": 1}})
    holder = engine.acquire(engine.claim("a"))

    def away(*_: object, **__: object) -> None:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(store, "touch", away)
        request = engine.request(engine.claim("a"))
        request.step()
        with pytest.raises(StoreUnavailable):
            request.acquire()
    assert store.beat(engine.session_id(), engine.leases.known)
    assert [row.claim.claim_id for row in engine.snapshot().claims] == [holder.claim_id]


@pytest.fixture
def connections(store_kind: str, store_url: str) -> Callable[[], int]:
    """How many connections the server has to the store's database, but for the one that asks."""
    url = make_url(store_url)
    statements = {
        "postgresql": f"SELECT count(*) - 1 FROM pg_stat_activity WHERE datname = '{url.database}'",
        "mariadb": f"SELECT count(*) - 1 FROM information_schema.processlist WHERE db = '{url.database}'",
    }
    if store_kind not in statements:
        return lambda: 0  # SQLite has no server
    asking = create_engine(url, isolation_level="AUTOCOMMIT")

    def count() -> int:
        with asking.connect() as connection:
            return int(connection.execute(text(statements[store_kind])).scalar_one())

    return count


@sql_stores
@pytest.mark.parametrize("how", ["tasks", "threads"])
def test_hundreds_of_waiters_in_one_process_use_few_connections_and_are_all_served(
    how: str, store_kind: str, store_url: str, connections: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    waiters = WAITERS[store_kind] if how == "tasks" else 100
    before, inside = connections(), Gauge()
    with penstock.connect(store_url, settings=Settings(store_retry_seconds=120)) as engine:
        configure(engine, pools={"limits": {"a": 20}})
        most, queued = 0, 0
        with engine.hold("a:20"):
            begun = time.monotonic()
            if how == "tasks":
                thread = threading.Thread(target=asyncio.run, args=(_all_wait(engine, inside, waiters),))
            else:
                thread = threading.Thread(target=in_threads, args=(waiters, lambda _: _one_waits(engine, inside)))
            thread.start()
            while queued < waiters:
                assert thread.is_alive()
                assert time.monotonic() < begun + 120, f"{queued} of {waiters} wait"
                queued = sum(row.waiting for row in engine.store.limit_rows())
                most = max(most, connections() - before)
                time.sleep(0.05)
            all_wait = time.monotonic()
        while thread.is_alive():
            most = max(most, connections() - before)
            thread.join(0.05)
        served = time.monotonic()
        assert inside.entered == waiters
        assert inside.most <= 20
        assert most <= BOUND
        assert nothing_left(engine)
    with capsys.disabled():
        print(
            f"\n{store_kind}: {waiters} {how} waited after {all_wait - begun:.1f} s and were served in "
            f"{served - all_wait:.1f} s over {most or 'its'} connections"
        )


async def _all_wait(engine: Engine, inside: Gauge, waiters: int) -> None:
    async def one() -> None:
        async with engine.hold_async("a"):
            with inside:
                pass

    await asyncio.gather(*(one() for _ in range(waiters)))


def _one_waits(engine: Engine, inside: Gauge) -> None:
    with engine.hold("a"), inside:
        pass


@sql_stores
def test_a_waiter_hears_of_a_release_in_another_process(store_kind: str, store_url: str) -> None:
    """Within a second by polling alone; where the store can tell, before any poll: polls are put off for an hour."""
    heard = store_kind == "postgresql"
    spawn = multiprocessing.get_context("spawn")
    poll_seconds = 3600.0 if heard else 1.0
    with penstock.connect(store_url) as engine, spawn.Manager() as manager:
        configure(engine, pools={"limits": {"a": 1}})
        granted = manager.Event()
        with spawn.Pool(1) as pool:
            lease = engine.acquire(engine.claim("a"))
            child = pool.apply_async(wait_and_tell, (store_url, "a", poll_seconds, granted))
            deadline = time.monotonic() + 60
            while not any(row.waiting for row in engine.store.limit_rows()):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            lease.release()
            released = time.monotonic()
            assert granted.wait(30)
            assert time.monotonic() - released < 1.5, "a second, and the way of the word between the processes"
            child.get(30)
