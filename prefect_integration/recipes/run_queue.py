"""Runs that carry tags: `python run_queue.py backfill:2024`; those of a deployment count as well."""

import sys

from penstock_prefect import limited
from prefect import flow, tags, task
from work import work


@task
def load(what):
    work(what)


@limited
@flow
def run_queue(what):
    load(what)


if __name__ == "__main__":
    with tags(*sys.argv[1:]):
        run_queue(" ".join(sys.argv[1:]) or "nightly")
