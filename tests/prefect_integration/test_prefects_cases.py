"""The situations of Prefect's own tests of concurrency limits, on ours.

| Prefect's case (tests/concurrency, tests/server) | here |
|---|---|
| taken once on entry, given back once on exit; sync and async | `test_a_block_takes_once_and_gives_back_once` |
| inside a task of a flow; while an event loop runs | `test_inside_tasks_of_a_flow` |
| a limit that does not exist: passes with a warning, fails when `strict` | `test_a_pool_without_a_limit`: passes and is shown; `default_limit` bounds what nobody thought of; there is no `strict` |
| nothing is renewed or given back where no limit exists (#19367) | the same: it is a row in the store, no lease of its own process to renew |
| no names at all: passes | `test_naming_nothing_is_an_error` |
| `timeout_seconds` | `test_a_wait_ends_at_its_timeout` |
| `max_retries` | `test_not_to_wait`: there are no tries to count; `on_blocked` says whether to wait |
| a request that the server finds invalid | `test_an_impossible_or_invalid_claim_says_what_is_wrong` |
| events | `penstock.slots.…` instead, in the tests of waiting |
| rate limits | none: a rate bounds no slots; `penstock import prefect-limits` says so |
| several limits, tags: all or none; one over its capacity | `test_all_or_none` |
| limit 0 fails the task | `test_a_closed_limit_makes_waiters` |
| limit not active: passes | none: a limit that does not count is no limit |
| slots are given back on terminal states only | sooner: in a retry's delay none is held (test_host.py, `retrying`) |
| a time-out inside gives the slots back (context) | `test_a_timeout_inside_gives_the_slots_back` |
| one that cannot be given back hides no other (context) | `test_one_that_cannot_be_given_back_hides_no_other` |
| a lease is renewed as long as the block runs; also while the event loop is blocked | `test_a_lease_outlives_its_ttl` |
| renewal fails once, then works | tests/core/test_self_fencing.py: a beat that fails is tried again |
| renewal fails for good: logged once, in the run's log; `raise_on_lease_renewal_failure` | `test_a_lost_lease_is_told_once_in_the_runs_log`; work is never interrupted: `lease.lost` and the fences tell |
| the caller is cancelled while slots are granted: given back (lease service) | `test_cancelled_at_the_moment_of_the_grant` |
| one service for each set of names, its cache, `Retry-After` | none: no HTTP is between a claim and its slot |
| the repossessor ends expired leases and spares the others | test_host.py, `test_a_killed_process_frees_its_slots`; `test_a_lease_outlives_its_ttl` |
| a lease without its counter, or without metadata | none: lease and count are the same rows |

Our own, which Prefect's limits do not pass: no slot in a retry's delay, none for a cache hit, waiting that does not count against the
time-out, SIGTERM that ends waiters in threads, SIGKILL (all in test_host.py); a wait that uses up no retry
(`test_waiting_uses_up_no_retry`).
"""  # noqa: E501  # a table

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import penstock
import pytest
from penstock import changes
from penstock.config import Concurrency, PoolLimit
from penstock.decision import Refused
from penstock.demo.prefect_host import PrefectHost
from penstock.engine import Engine
from penstock.errors import Blocked, ClaimError, ImpossibleClaim, StoreUnavailable, WaitTimeout
from penstock.lease import Lease
from penstock_prefect import aslots, limited, slots
from prefect import flow, task
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.utilities.timeout import timeout, timeout_async
from prefect_api import events

Both = pytest.mark.parametrize("kind", ["sync", "async"])


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """A store with one slot in `single` and two in `database`, which the integration uses too."""
    url = f"sqlite:///{tmp_path / 'penstock.db'}"
    monkeypatch.setenv("PREFECT_INTEGRATIONS_PENSTOCK_STORE_URL", url)
    monkeypatch.setenv("PREFECT_INTEGRATIONS_PENSTOCK_SESSION_TTL_SECONDS", "1")
    with penstock.connect(url) as engine:
        block = {"pools": {"limits": {"single": 1, "database": 2, "closed": 0}}}
        changes.apply(engine, Concurrency.model_validate(block), expected_version=0)
        yield engine


def held(engine: Engine) -> dict[str, int]:
    return {row.key: row.held for row in engine.store.limit_rows() if row.held}


def hold(kind: str, *pools: Any, inside: Callable[[Lease | None], Any], **options: Any) -> None:
    """`inside` under `slots`, or under `aslots` on an event loop of its own."""

    async def on_a_loop() -> None:
        async with aslots(*pools, **options) as lease:
            inside(lease)

    if kind == "async":
        asyncio.run(on_a_loop())
    else:
        with slots(*pools, **options) as lease:
            inside(lease)


def refused(engine: Engine, pool: str) -> bool:
    return isinstance(engine.try_acquire(engine.claim(pool, op_id="other")), Refused)


@Both
def test_a_block_takes_once_and_gives_back_once(engine: Engine, kind: str) -> None:
    seen = []
    hold(kind, "single", inside=lambda _: seen.append(held(engine)))
    assert seen == [{"pool:single": 1}]
    assert held(engine) == {}
    assert [row.event for row in engine.store.history()][-2:] == ["granted", "released"]


@Both
def test_inside_tasks_of_a_flow(engine: Engine, host: PrefectHost, kind: str) -> None:
    """On the server: sync and async tasks, and a sync one while an event loop runs."""
    seen = []

    @task
    def plain() -> None:
        with slots("single"):
            seen.append(held(engine))

    @task
    async def coroutine() -> None:
        async with aslots("single"):
            seen.append(held(engine))

    @flow
    def both() -> None:
        plain()
        coroutine.submit().result()

    @flow
    async def both_async() -> None:
        plain()
        await coroutine()

    with temporary_settings({PREFECT_API_URL: host.api_url}):
        asyncio.run(both_async()) if kind == "async" else both()
    assert seen == [{"pool:single": 1}] * 2
    assert held(engine) == {}


@Both
def test_a_pool_without_a_limit(engine: Engine, kind: str) -> None:
    seen = []
    hold(kind, "santa-clause", inside=lambda _: seen.append(held(engine)))
    assert seen == [{"pool:santa-clause": 1}]
    bounded = {"pools": {"default_limit": 1, "limits": {"database": 2}}}
    changes.apply(engine, Concurrency.model_validate(bounded), expected_version=1)
    with engine.hold("easter-bunny"), pytest.raises(Blocked):
        hold(kind, "easter-bunny", inside=print, on_blocked="fail")


@Both
def test_naming_nothing_is_an_error(engine: Engine, kind: str) -> None:
    with pytest.raises(ClaimError, match="name at least one pool"):
        hold(kind, inside=print)


@Both
def test_a_wait_ends_at_its_timeout(engine: Engine, kind: str) -> None:
    with engine.hold("single"):
        with pytest.raises(WaitTimeout):
            hold(kind, "single", inside=print, wait_timeout_seconds=0.01)
        assert engine.status()["waiters"] == []


@Both
def test_not_to_wait(engine: Engine, kind: str) -> None:
    with engine.hold("single"), pytest.raises(Blocked, match="1 of 1 held"):
        hold(kind, "single", inside=print, on_blocked="fail")


@Both
def test_an_impossible_or_invalid_claim_says_what_is_wrong(engine: Engine, kind: str) -> None:
    with pytest.raises(ImpossibleClaim, match="Ask for less, or raise the limit"):
        hold(kind, "database", 3, inside=print)
    with pytest.raises(ClaimError, match="0"):
        hold(kind, "database", 0, inside=print)


@Both
def test_all_or_none(engine: Engine, kind: str) -> None:
    with engine.hold("single"):
        with pytest.raises(Blocked, match="single"):
            hold(kind, "database:2", "single", inside=print, on_blocked="fail")
        assert held(engine) == {"pool:single": 1}
    seen = []
    hold(kind, "database:2", "single", inside=lambda _: seen.append(held(engine)))
    assert seen == [{"pool:database": 2, "pool:single": 1}]


def test_a_closed_limit_makes_waiters(engine: Engine) -> None:
    @limited("closed", wait_timeout_seconds=30)
    def opened() -> str:
        return "ran"

    ran = []
    waiter = threading.Thread(target=lambda: ran.append(opened()))
    waiter.start()
    while not engine.status()["waiters"]:
        time.sleep(0.01)
    assert not ran
    version, before = engine.configuration(fresh=True)
    changes.apply(engine, before.with_pool("closed", PoolLimit(limit=1)), expected_version=version)
    waiter.join(20)
    assert ran == ["ran"]


@Both
def test_a_timeout_inside_gives_the_slots_back(engine: Engine, kind: str) -> None:
    async def on_a_loop() -> None:
        with timeout_async(0.2):
            async with aslots("single"):
                assert held(engine) == {"pool:single": 1}
                await asyncio.sleep(1)

    def in_a_thread() -> None:
        with timeout(0.2), slots("single"):
            assert held(engine) == {"pool:single": 1}
            time.sleep(1)

    with pytest.raises(TimeoutError):
        asyncio.run(on_a_loop()) if kind == "async" else in_a_thread()
    assert held(engine) == {}


def test_one_that_cannot_be_given_back_hides_no_other(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    release, failed = Lease.release, []

    def fail_once(lease: Lease) -> None:
        if not failed:
            failed.append(lease)
            raise StoreUnavailable("away")
        release(lease)

    with slots("single"), slots("database"):
        monkeypatch.setattr(Lease, "release", fail_once)
    assert held(engine) == {"pool:database": 1}  # until its session is over
    release(failed[0])
    assert held(engine) == {}


@Both
def test_a_lease_outlives_its_ttl(engine: Engine, kind: str) -> None:
    """Beyond TTL and grace, on a blocked event loop too: the heart beats in a thread."""
    refusals = []

    def look(lease: Lease | None) -> None:
        until = time.monotonic() + 5
        while time.monotonic() < until:
            refusals.append(refused(engine, "single"))
            time.sleep(0.2)
        assert lease is not None
        assert not lease.lost

    hold(kind, "single", inside=look)
    assert len(refusals) > 5
    assert all(refusals)


def test_a_lost_lease_is_told_once_in_the_runs_log(
    engine: Engine, host: PrefectHost, caplog: pytest.LogCaptureFixture
) -> None:
    @task
    def loser() -> Lease:
        with slots("single") as lease:
            assert lease is not None
            for _ in range(12):  # a minute without a beat, as the store sees it
                engine.store.clock_shift += 5_000_000  # type: ignore[attr-defined]
                engine.store.sweep()
            until = time.monotonic() + 20
            while not lease.lost and time.monotonic() < until:
                time.sleep(0.05)
            time.sleep(1)  # beats more
        return lease

    @flow
    def losing() -> str:
        assert loser().lost  # it went on to its end
        return str(flow_run.id)

    with temporary_settings({PREFECT_API_URL: host.api_url}):
        run_id = losing()
    # The thread that beats has no settings of its own: with other ones it would start a server to tell.
    lost = partial(events, host, f"flow-run.{run_id}", "penstock.slots.lost")
    host.wait_for("the event", lambda: bool(lost()), seconds=30)
    (told,) = (record for record in caplog.records if "The slots are lost" in record.getMessage())
    assert (told.name, told.levelname) == ("prefect.task_runs", "ERROR")
    assert str(told.__dict__["flow_run_id"]) == run_id


def test_cancelled_at_the_moment_of_the_grant(engine: Engine) -> None:
    """Thirty times: the holder lets go and the waiter is cancelled at once; whichever comes first, nothing is left."""

    async def round_() -> None:
        async def wait() -> None:
            async with aslots("single"):
                pass

        lease = await engine.acquire_async(engine.claim("single"), wait_timeout_seconds=20)
        waiting = asyncio.create_task(wait())
        while not waiting.done() and not await asyncio.to_thread(lambda: engine.status()["waiters"]):
            await asyncio.sleep(0.005)
        await asyncio.to_thread(lease.release)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting

    async def rounds() -> None:
        for _ in range(30):
            await round_()

    asyncio.run(rounds())
    with engine.hold("single", wait_timeout_seconds=10):
        assert engine.status()["waiters"] == []


def test_waiting_uses_up_no_retry(engine: Engine, host: PrefectHost) -> None:
    """Flow and task wait for their slots, fail once, and are well at the last attempt that they have."""
    tried = {"flow": 0, "task": 0}

    def fail_first(what: str) -> None:
        tried[what] += 1
        if tried[what] == 1:
            raise RuntimeError("the first attempt")

    @limited("single")
    @task(retries=1)
    def step() -> None:
        fail_first("task")

    @limited("database", slots=2)
    @flow(retries=1)
    def root() -> str:
        with occupied(engine, "single"):
            step()
        fail_first("flow")
        return "well"

    with temporary_settings({PREFECT_API_URL: host.api_url}), occupied(engine, "database:2"):
        assert root() == "well"
    assert tried == {"flow": 2, "task": 3}  # the flow's second attempt has a task of its own
    assert held(engine) == {}


@contextlib.contextmanager
def occupied(engine: Engine, pool: str) -> Iterator[None]:
    """Somebody holds the pool until another waits for it, and for a second more."""
    taken, ended = threading.Event(), threading.Event()

    def occupy() -> None:
        with engine.hold(pool, op_id="occupier"):
            taken.set()
            while not engine.status()["waiters"] and not ended.is_set():
                time.sleep(0.02)
            time.sleep(1)

    thread = threading.Thread(target=occupy)
    thread.start()
    taken.wait(20)
    try:
        yield
    finally:
        ended.set()
        thread.join(30)
