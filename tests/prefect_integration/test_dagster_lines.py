"""The lines for Prefect that `penstock migrate dagster --code` writes for ops are what `limited` and `@task` take."""

from __future__ import annotations

from pathlib import Path

from penstock_plugins.dagster.code import read
from penstock_prefect import limited
from prefect import Task, task

DAGSTER = Path(__file__).parents[1] / "plugins" / "dagster"


def test_limited_and_task_take_every_line() -> None:
    lines = {row.prefect for row in read(DAGSTER).definitions if row.prefect}
    assert len(lines) > 20
    for line in lines:
        above, _, below = line.removeprefix("@").partition(" @")
        names = {"limited": limited, "task": task}
        assert isinstance(eval(above, names)(eval(below, names)(print_it)), Task)


def print_it() -> None:
    print("it")
