"""Flows that the tests run as processes of their own: `python scripts.py NAME INTERVALS RUN_NAME`."""

import asyncio
import os
import signal
import sys
import time
from datetime import timedelta

from penstock_prefect import aslots, limited, slots
from prefect import flow, tags, task
from prefect.cache_policies import INPUTS
from prefect.states import Completed

name, intervals, run_name = sys.argv[1:4]


def work(label: str, seconds: float = 0.4) -> None:
    begun = time.monotonic()
    time.sleep(seconds)
    with open(intervals, "a") as file:
        file.write(f"{label} {begun} {time.monotonic()}\n")


@limited("database")
@task
def query(number: int) -> int:
    work("database")
    return number


@limited("database")
@task
async def query_async(number: int) -> int:
    begun = time.monotonic()
    await asyncio.sleep(0.4)
    with open(intervals, "a") as file:
        file.write(f"database {begun} {time.monotonic()}\n")
    return number


@flow(flow_run_name=run_name)
def shared() -> list[int]:
    futures = [*(query.submit(number) for number in range(3)), *query.map([3, 4])]
    with slots("database"):
        work("database")
    return [future.result() for future in futures]


@flow(flow_run_name=run_name)
async def shared_async() -> list[int]:
    async with aslots("database"):
        pass
    return list(await asyncio.gather(*(query_async(number) for number in range(4))))


@limited
@flow(flow_run_name=run_name)
def inner() -> None:
    work("inner", 0.05)


@limited
@flow(flow_run_name=run_name)
def nightly() -> None:
    work("nightly")
    inner()  # shares its root's run lease: with a run total of 1 it would wait for itself


@limited
@flow(flow_run_name=run_name)
async def nightly_async() -> None:
    await asyncio.sleep(0.4)
    work("nightly", 0)


@limited("database", slots=2)
@flow(flow_run_name=run_name)
def covered() -> int:
    return query(1)


attempts = 0


@limited("single")
@task(retries=1, retry_delay_seconds=2)
def flaky() -> None:
    global attempts  # noqa: PLW0603
    attempts += 1
    if attempts == 1:
        raise RuntimeError("the first attempt fails")


@flow(flow_run_name=run_name)
def retrying() -> None:
    future = flaky.submit()
    while not attempts:
        time.sleep(0.05)
    with slots("single", wait_timeout_seconds=1.5):  # free during the retry's delay
        pass
    future.result()


@limited("single")
@task(cache_policy=INPUTS, cache_expiration=timedelta(minutes=5), persist_result=True)
def cached(number: int) -> int:
    return number


@flow(flow_run_name=run_name)
def caching() -> None:
    cached(1)
    with slots("single"):
        assert cached(1) == 1  # a hit takes no slot: it would wait for ever


@limited("single", on_blocked="skip")
@task(persist_result=True)
def skipping() -> str:
    return "ran"


@limited("single", on_blocked="fail")
@task
def refusing() -> str:
    return "ran"


@flow(flow_run_name=run_name)
def blocked() -> Completed:
    with slots("single"):
        skipped = skipping(return_state=True)
        refused = refusing(return_state=True)
    assert skipped.name == "Skipped", skipped
    assert "1 of 1 held" in skipped.message
    assert refused.is_failed(), refused
    assert skipping() == "ran"  # a skipped result is not cached
    return Completed(message="both seen")


@limited("single")
@task
def numbers():
    yield from range(3)


@limited("single", on_blocked="skip")
@flow(flow_run_name=run_name)
def skippable() -> None:
    work("skippable")
    assert list(numbers()) == [0, 1, 2]  # covered by the flow's own slot


@limited("single")
@task(timeout_seconds=1)
def short() -> str:
    return "in time"


@limited("single")
@task(timeout_seconds=0.3)
async def too_long() -> None:
    await asyncio.sleep(5)


@flow(flow_run_name=run_name)
def patient() -> None:
    with slots("single"):
        future = short.submit()
        time.sleep(2)  # longer than the timeout
    assert future.result() == "in time"
    assert short() == "in time"  # in the main thread the timeout is an alarm
    slow = too_long.submit()
    slow.wait()
    assert slow.state.name == "TimedOut", slow.state


@limited("single")
@task
def queued() -> None:
    work("queued")


@limited("single")
@task
async def queued_async() -> None:
    work("queued")


@limited
@flow(flow_run_name=run_name)
def terminated() -> None:
    for future in (queued.submit(), queued_async.submit()):
        future.result()


@limited("single")
@task
def forever() -> None:
    work("up", 0)
    if run_name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)


@flow(flow_run_name=run_name)
def dying() -> None:
    forever()


if __name__ == "__main__":
    chosen = globals()[name]
    if name == "nightly" and run_name.startswith("team"):
        with tags("team:analytics"):
            chosen()
    elif asyncio.iscoroutinefunction(chosen.fn):
        asyncio.run(chosen())
    else:
        chosen()
