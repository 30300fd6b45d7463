"""Limits of three kinds bound the same tasks: none is ever passed."""

from penstock_prefect import limited
from prefect import flow, task
from work import work


@task
def parts():
    return [1, 2, 3]


@limited("reports")
@task
def report(part):
    work("report")


@limited
@flow
def combined():
    for future in report.map(parts()):
        future.result()


if __name__ == "__main__":
    combined()
