"""Waits, and how they end: `python waits.py NAME INTERVALS RUN_NAME`."""

import asyncio
import sys
import time

from penstock_prefect import limited
from prefect import flow, task
from prefect.context import FlowRunContext, TaskRunContext
from prefect.task_runners import ProcessPoolTaskRunner

name, intervals, run_name = sys.argv[1:4] if len(sys.argv) > 3 else ("", "/dev/null", "imported")


def said(word: str) -> None:
    with open(intervals, "a") as file:
        file.write(f"{word} {time.monotonic()} {time.monotonic()}\n")


def running(task, task_run, state) -> None:
    said("hook")


@limited("database")
@task(timeout_seconds=20, on_running=[running])
def waiting() -> None:
    run = TaskRunContext.get().task_run
    assert (run.run_count, run.state.is_running()) == (1, True)
    said("waiting")


@limited("database")
@task
async def waiting_async() -> None:
    said("waiting")


@limited("unlimited")
@task
def at_once() -> None:
    said("at_once")


@limited("single")
@flow(flow_run_name=run_name)
def shown() -> None:
    assert FlowRunContext.get().flow_run.run_count == 1
    waiting()
    at_once()


@flow(flow_run_name=run_name)
def undecorated() -> None:
    for future in (waiting.submit(), waiting_async.submit()):
        future.result()


@limited
@flow(flow_run_name=run_name, task_runner=ProcessPoolTaskRunner(max_workers=1))
def pooled() -> None:
    waiting.submit().result()


@limited("single")
@flow(flow_run_name=run_name)
async def blocking() -> None:
    said("begun")
    time.sleep(12)  # twice the TTL, on the event loop
    await asyncio.sleep(0)
    said("ended")


if __name__ == "__main__":
    chosen = globals()[name]
    asyncio.run(chosen()) if asyncio.iscoroutinefunction(chosen.fn) else chosen()
