"""Tasks and flows under the lines that `penstock migrate dagster --code` prints: `python dagster_lines.py FOLDER`.

The task of row N of the definitions is `op_N`, in the flow `definitions`; the flow of row N of the runs is `run_N`.
"""

import os
import sys
from pathlib import Path

from penstock_plugins.dagster.code import read
from penstock_prefect import limited
from prefect import flow, task

report = read(Path(sys.argv[1]))


def under(line, function, **names):
    """The function as it stands under a line such as `@limited("a") @task(tags=["b"])`."""
    above, _, below = line.removeprefix("@").partition(" @")
    known = {"limited": limited, "task": task, "os": os}
    made = eval(below, known)(function) if below else names["made"]
    return eval(above, known)(made)


def op(number, line):
    def function():
        return number

    function.__name__ = function.__qualname__ = f"op_{number}"
    return under(line, function)


ops = [op(number, row.prefect) for number, row in enumerate(report.definitions) if row.prefect]


@limited
@task(tags=["database:warehouse", "team:ml", "api:rates"])
def step():
    return 1


def run(number, line):
    def function():
        return step()

    function.__name__ = function.__qualname__ = f"run_{number}"
    return under(line, function, made=flow(function))


runs = [
    run(number, line)
    for number, row in enumerate(report.runs)
    if (line := (row.prefect or "").partition(" deploy(")[0]).startswith("@")
]


@limited
@flow
def definitions():
    for future in [each.submit() for each in ops]:
        future.result()


if __name__ == "__main__":
    definitions()
    for each in runs:
        each()
