"""`@limited` keeps what Prefect reads off a task or flow, whatever kind of function is below it. No server here."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import pytest
from penstock.engine import Engine
from penstock.errors import Blocked, ClaimError, Skipped, StoreUnavailable
from penstock.lease import Lease
from penstock_prefect import aslots, installation, limit_all, limited, slots
from penstock_prefect.attempts import Attempt
from penstock_prefect.claims import Standing
from penstock_prefect.ending import free_slots
from penstock_prefect.facts import MARK
from penstock_prefect.showing import Shown
from prefect import flow, task
from prefect.flows import Flow
from prefect.tasks import Task


@pytest.fixture
def engine(local_engine: Engine) -> Engine:
    return local_engine


def held(engine: Engine) -> dict[str, int]:
    return {row.key: row.held for row in engine.store.limit_rows() if row.held}


@task(name="Query", version="7", tags=["db:x"], retries=2, timeout_seconds=9)
def query(number: int, *, text: str = "a") -> str:
    """The docstring."""
    return text * number


@flow(name="Nightly", retries=1)
def nightly(number: int) -> int:
    return number


def test_a_limited_task_is_the_task_it_was() -> None:
    wrapped = limited("database", slots=2)(query)
    assert isinstance(wrapped, Task)
    assert wrapped is not query
    for name in ("task_key", "name", "version", "tags", "retries", "isasync", "isgenerator", "__doc__", "source_code"):
        assert getattr(wrapped, name) == getattr(query, name), name
    assert inspect.signature(wrapped) == inspect.signature(query)
    assert query.timeout_seconds == 9


def test_a_limited_flow_is_the_flow_it_was() -> None:
    wrapped = limited(nightly)
    assert isinstance(wrapped, Flow)
    for name in ("name", "version", "_entrypoint", "parameters", "retries", "isasync", "__doc__"):
        assert getattr(wrapped, name) == getattr(nightly, name), name
    assert wrapped.validate_parameters({"number": "3"}) == {"number": 3}


def test_with_options_keeps_the_limits_and_the_key(engine: Engine) -> None:
    wrapped = limited("single")(query).with_options(name="Other", timeout_seconds=3)
    assert (wrapped.name, wrapped.task_key) == ("Other", query.task_key)
    with engine.hold("single"), pytest.raises(Blocked):
        limited("single", on_blocked="fail")(query).with_options(retries=5).fn(1)
    with engine.hold("single"), pytest.raises(Blocked):
        limited("single", on_blocked="fail")(nightly).with_options(name="n").fn(1)


def test_below_task_two_functions_keep_distinct_keys_and_their_place() -> None:
    @task
    @limited("a")
    def same(x: int) -> int:
        return x

    first = same

    @task
    @limited("a")
    def same(x: int) -> int:
        return x + 1

    assert first.task_key != same.task_key
    assert first.task_key.startswith("same-")
    assert inspect.getsourcefile(same.fn) == __file__
    assert "return x + 1" in same.source_code
    assert same.fn(1) == 2


def test_below_task_the_key_follows_the_users_code() -> None:
    codes = []
    for body in ("return 1", "return 2"):
        namespace: dict[str, Any] = {"limited": limited, "task": task}
        exec(compile(f"@task\n@limited('a')\ndef f():\n    {body}\n", "same-file", "exec"), namespace)
        codes.append(namespace["f"].task_key)
    assert codes[0] != codes[1]


def test_below_flow_version_and_entrypoint_are_those_of_the_users_file() -> None:
    @flow
    @limited
    def below(number: int) -> int:
        return number

    @flow
    def plain(number: int) -> int:
        return number

    assert below.version == plain.version
    assert below._entrypoint == plain._entrypoint.replace("plain", "below")
    assert below.validate_parameters({"number": "3"}) == {"number": 3}


def test_hooks_that_are_added_later_stay_with_options() -> None:
    wrapped = limited(flow(nightly.fn))

    @wrapped.on_crashed
    def notify(flow: Any, flow_run: Any, state: Any) -> None: ...

    assert wrapped.on_crashed_hooks == [free_slots, notify]
    changed = wrapped.with_options(name="n")
    assert sorted(changed.on_crashed_hooks, key=repr) == sorted([free_slots, notify], key=repr)
    assert changed.on_cancellation_hooks == [free_slots]


def test_methods_stay_bound(engine: Engine) -> None:
    class Source:
        @limited("single")
        @task
        def read(self) -> Source:
            return self

    source = Source()
    assert source.read.fn.__prefect_self__ is source
    assert source.read.with_options(name="x").fn.__prefect_self__ is source


def test_a_limited_task_survives_cloudpickle(engine: Engine) -> None:
    copied = cloudpickle.loads(cloudpickle.dumps(limited("single")(query)))
    assert copied.fn(2) == "aa"
    assert copied.task_key == query.task_key


def test_all_four_kinds_hold_while_they_run_and_give_back(engine: Engine) -> None:
    seen = []

    def look() -> None:
        seen.append(held(engine))

    @limited("database", slots=2)
    def plain() -> None:
        look()

    @limited("database", slots=2)
    async def coroutine() -> None:
        look()

    @limited("database", slots=2)
    def generator() -> Iterator[int]:
        look()
        yield 1
        look()

    @limited("database", slots=2)
    async def async_generator() -> AsyncIterator[int]:
        look()
        yield 1

    async def consume() -> list[int]:
        return [item async for item in async_generator()]

    assert inspect.iscoroutinefunction(coroutine)
    assert inspect.isgeneratorfunction(generator)
    assert inspect.isasyncgenfunction(async_generator)
    plain()
    asyncio.run(coroutine())
    assert list(generator()) == [1]
    assert asyncio.run(consume()) == [1]
    assert seen == [{"pool:database": 2}] * 5
    assert held(engine) == {}


def test_between_a_generators_items_its_slots_cover_nothing_of_the_consumer(engine: Engine) -> None:
    @limited("single")
    def generator() -> Iterator[int]:
        with slots("single"):  # covered by its own
            yield 1

    items = generator()
    next(items)
    with pytest.raises(Blocked), slots("single", on_blocked="fail"):
        pass
    items.close()
    assert held(engine) == {}


def test_an_error_in_the_work_gives_the_slots_back(engine: Engine) -> None:
    @limited("single")
    def fails() -> None:
        raise ValueError("work")

    with pytest.raises(ValueError, match="work"):
        fails()
    with contextlib.suppress(ValueError), slots("single"):
        raise ValueError
    assert held(engine) == {}


def hold(kind: str, inside: Callable[[], Any]) -> None:
    """`inside` under `slots`, or under `aslots` on an event loop of its own."""

    async def on_a_loop() -> None:
        async with aslots("single"):
            inside()

    if kind == "async":
        asyncio.run(on_a_loop())
    else:
        with slots("single"):
            inside()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_signal_right_after_the_grant_gives_the_slots_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def interrupted(*_: Any) -> None:
        assert held(engine) == {"pool:single": 1}
        raise asyncio.CancelledError  # SIGTERM and Prefect's timeout raise what is no Exception, too

    monkeypatch.setattr(Shown, "granted", interrupted)
    with pytest.raises(asyncio.CancelledError):
        hold(kind, print)
    assert held(engine) == {}


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_run_that_has_lost_its_lease_bars_nobody(engine: Engine, kind: str) -> None:
    lost = Standing(run_id="lost", run_claim_id="lost", run_pools={"database": 2})
    seen: list[dict[str, int]] = []
    with Attempt(lost, "flow").applied():
        hold(kind, lambda: seen.append(held(engine)))
    assert seen == [{"pool:single": 1}]


def test_who_waits_goes_on_when_the_run_around_is_over(engine: Engine) -> None:
    own = installation.engine()
    assert own is not None
    lease, seen = own.acquire(own.run_claim("over")), []

    def wait() -> None:
        standing = Standing(run_id="over", run_claim_id=lease.claim_id)
        with Attempt(standing, "flow").applied(), slots("single", wait_timeout_seconds=20):
            seen.append(held(engine))

    waiter = threading.Thread(target=wait)
    with engine.hold("single", op_id="other"):
        waiter.start()
        while not engine.status()["waiters"]:
            time.sleep(0.01)
        before = engine.status()["waiters"][0]["claim_id"]
        lease.release()
        while waiter.is_alive() and [row["claim_id"] for row in engine.status()["waiters"]] in ([], [before]):
            time.sleep(0.01)
        assert before not in [row["claim_id"] for row in engine.status()["waiters"]]
    waiter.join(20)
    assert seen == [{"pool:single": 1}]


def test_an_event_loop_does_no_io_and_needs_none_of_its_own_threads(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, released_by = Lease.release, []

    def note(lease: Lease) -> None:
        released_by.append(threading.current_thread())
        release(lease)

    monkeypatch.setattr(Lease, "release", note)

    async def starved() -> None:
        loop, over = asyncio.get_running_loop(), threading.Event()
        loop.set_default_executor(ThreadPoolExecutor(1))
        busy = loop.run_in_executor(None, over.wait, 30)
        try:
            async with asyncio.timeout(10), aslots("single"):
                assert held(engine) == {"pool:single": 1}
        finally:
            over.set()
            await busy
        assert held(engine) == {}

    asyncio.run(starved())
    assert released_by
    assert threading.current_thread() not in released_by


def test_slots_and_aslots_count_several_pools(engine: Engine) -> None:
    async def both() -> dict[str, int]:
        async with aslots("database:2", "single") as lease:
            assert lease is not None
            assert set(lease.fences) == {"pool:database", "pool:single"}
            return held(engine)

    with slots("database", 2) as lease:
        assert lease is not None
        assert len(lease.fences["pool:database"]) == 2
    assert asyncio.run(both()) == {"pool:database": 2, "pool:single": 1}
    with engine.hold("single"), pytest.raises(Skipped), slots("single", on_blocked="skip"):
        pass
    with pytest.raises(ClaimError), slots():
        pass


def test_a_nested_block_is_covered_up_to_what_is_held(engine: Engine) -> None:
    with slots("database", 2) as outer, slots("database") as inner:
        assert inner is outer
        with pytest.raises(ClaimError, match="3 slots asked inside"), slots("database", 3):
            pass


def test_a_cancelled_wait_leaves_nothing_behind(engine: Engine) -> None:
    async def cancelled() -> None:
        async def wait() -> None:
            async with aslots("single"):
                pass

        waiting = asyncio.create_task(wait())
        while not engine.status()["waiters"]:
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        while engine.status()["waiters"]:
            await asyncio.sleep(0.01)

    with engine.hold("single"):
        asyncio.run(cancelled())
    with engine.hold("single", on_blocked="fail"):
        pass


def test_twice_limited_and_unlimitable_things_are_refused() -> None:
    with pytest.raises(TypeError, match="already"):
        limited("b")(limited("a")(query))
    with pytest.raises(TypeError, match="above @task"):
        limited("a")(classmethod(lambda cls: None))


def test_limit_all_changes_in_place_what_is_there_once(engine: Engine) -> None:
    module = ModuleType("own")
    source = """
from prefect import flow, task
from penstock_prefect import limited

@task
def first(): return 1

@limited("database")
@task
def second(): return 2

@flow
def both(): return first.fn() + second.fn()
"""
    exec(source, vars(module))
    vars(module)["imported"] = query
    elsewhere, key = module.first, module.first.task_key
    assert limit_all(module, pools="single", on_blocked="fail") == ["first", "both"]
    assert limit_all(module, [module.first, module.both]) == []
    assert (elsewhere, elsewhere.task_key) == (module.first, key), "who has the object has its limits"
    with engine.hold("single"), pytest.raises(Blocked):
        elsewhere.fn()
    with engine.hold("single"), pytest.raises(Blocked):
        elsewhere.with_options(name="other").fn()
    assert not hasattr(query.fn, MARK), "what a module imports is not its own"


def test_limit_all_takes_a_flow_with_what_it_names() -> None:
    @task
    def inner() -> int:
        return 1

    @flow
    def subflow() -> int:
        return inner()

    @flow
    def outer() -> int:
        return subflow() + inner()

    assert sorted(limit_all(outer)) == ["inner", "outer", "subflow"]
    with pytest.raises(TypeError, match="limit_all takes"):
        limit_all(lambda: None)


def test_a_store_that_is_not_there_is_an_error_not_a_licence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PREFECT_INTEGRATIONS_PENSTOCK_STORE_URL", f"sqlite:///{tmp_path / 'file' / 'penstock.db'}")
    monkeypatch.setenv("PENSTOCK_ON_STORE_ERROR", "fail")
    ran = []
    with pytest.raises(StoreUnavailable):
        limited("a")(lambda: ran.append(1))()
    assert ran == []
