"""Everything that can be limited, in as few processes as possible: `python kinds.py NAME INTERVALS RUN_NAME`."""

import asyncio
import sys
import time

from penstock_prefect import limit_all, limited, slots
from prefect import flow, tags, task
from prefect.assets import materialize
from prefect.futures import wait
from prefect.task_runners import ProcessPoolTaskRunner
from prefect.task_worker import serve

name, intervals, run_name = sys.argv[1:4] if len(sys.argv) > 3 else ("", "/dev/null", "imported")


def work(label: str, seconds: float = 0.3) -> None:
    begun = time.monotonic()
    time.sleep(seconds)
    with open(intervals, "a") as file:
        file.write(f"{label} {begun} {time.monotonic()}\n")


@limited("database")
@task(tags=["table:a"])
def plain(number: int) -> int:
    work("table")
    return number


@limited("database")
@task
async def coroutine(number: int) -> int:
    work("database", 0)
    return number


@limited("database", "api:2")
@task
def several(number: int) -> int:
    return number


@limited("database")
@task
def generator():
    yield from range(3)


@limited("database")
@task
async def async_generator():
    for number in range(3):
        yield number


@limited("database")
@materialize("s3://tables/a")
def asset() -> int:
    return 1


class Source:
    @limited("database")
    @task
    def read(self) -> "Source":
        return self


@limited("sub")
@flow(flow_run_name=run_name)
def subflow() -> int:
    assert Source().read() is not None
    return plain(6)


@limited("sub")
@flow(flow_run_name=run_name)
async def async_subflow() -> list[int]:
    return [*await asyncio.gather(coroutine(7), coroutine(8)), *[number async for number in async_generator()]]


@task
def undecorated(number: int) -> int:
    return number


@flow(flow_run_name=run_name)
def undecorated_subflow() -> int:
    with slots("sub", 1):
        return undecorated(9)


@limited("late")
@flow(flow_run_name=run_name)
def late_subflow() -> int:
    return several(10)


@limited("database", slots=1)
@task
def delayed(number: int) -> int:
    return number


@limited(max_concurrent=2, tag_concurrency_limits=[{"key": "table", "limit": 1}])
@flow(flow_run_name=run_name)
def everything() -> None:
    futures = [plain.submit(1), coroutine.submit(2), *plain.map([3, 4]), plain.with_options(name="other").submit(5)]
    assert [future.result() for future in futures] == [1, 2, 3, 4, 5]
    assert list(generator()) == [0, 1, 2]
    assert asset() == 1
    assert subflow() == 6
    assert asyncio.run(async_subflow()) == [7, 8, 0, 1, 2]
    with tags("team:b", "table:b"):
        assert several(0) == 0
    assert limit_all(undecorated_subflow) == ["undecorated-subflow", "undecorated"]
    assert limit_all(undecorated_subflow) == []
    assert undecorated_subflow() == 9
    assert late_subflow() == 10


@flow(flow_run_name=run_name)
def delaying() -> int:
    future = delayed.delay(1)
    wait([future], timeout=120)
    return future.result()


@limited("single", max_concurrent=1, priority=3)
@flow(flow_run_name=run_name, task_runner=ProcessPoolTaskRunner(max_workers=2))
def pooled() -> None:
    futures = [in_a_process.submit(number) for number in range(3)]
    assert [future.result() for future in futures] == [0, 1, 2]


@limited("database", "single", priority=2)
@task
def in_a_process(number: int) -> int:
    with slots("database"):  # the task's own
        work("process", 0.1)
    return number


@limited
@flow(log_prints=True)
def served(number: int = 0) -> int:
    return plain(number)


if __name__ == "__main__":
    if name == "worker":
        serve(delayed)
    elif name == "served":
        served.serve("served", tags=["team:served"])
    else:
        globals()[name]()
