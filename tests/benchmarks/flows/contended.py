"""What the benchmark in Prefect runs: `contended.py LIMITER CASE FOLDER NAME`.

LIMITER: `bare`, `penstock`, `concurrency` (Prefect's global limits) or `tag` (its limits on tasks by tag).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from penstock_prefect import limited
from prefect import flow, task
from prefect.concurrency.sync import concurrency

limiter, case, folder, name = sys.argv[1:5]
TASKS, WORK_SECONDS = int(os.environ["BENCHMARK_TASKS"]), float(os.environ["BENCHMARK_SECONDS"])


def work() -> None:
    began = time.monotonic()
    time.sleep(WORK_SECONDS)
    with (Path(folder) / "passed").open("a") as file:
        file.write(f"{began} {time.monotonic()}\n")


def under_concurrency() -> None:
    with concurrency("benchmark", occupy=1, strict=True):
        work()


def made() -> Any:
    """The task with its limit."""
    if limiter == "penstock":
        return limited("benchmark")(task(work))
    function: Callable[[], None] = under_concurrency if limiter == "concurrency" else work
    return task(function, tags=["benchmark"] if limiter == "tag" else [])


step = made()


@flow(flow_run_name=name)
def at_once() -> None:
    """All of them submitted, and the slots go from one to the next."""
    for future in [step.submit() for _ in range(TASKS)]:
        future.result()


@flow(flow_run_name=name)
def one_by_one() -> None:
    """No limit is reached: what a task costs."""
    for _ in range(TASKS):
        step()


if __name__ == "__main__":
    (Path(folder) / f"ready-{name}").touch()
    while not (Path(folder) / "go").exists():  # all processes begin together, whatever it takes to load Prefect
        time.sleep(0.01)
    globals()[case]()
