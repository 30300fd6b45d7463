"""An ordinary flow under `@limited`. `python penstock_demo.py RUN_NAME [TAG]` runs it once."""

import os
import sys
import time

from penstock_prefect import limited
from prefect import flow, tags, task


def work(pool: str, seconds: float) -> None:
    begun = time.monotonic()
    time.sleep(seconds)
    with open(os.environ["PENSTOCK_DEMO_INTERVALS"], "a") as file:
        file.write(f"pool:{pool} {begun} {time.monotonic()}\n")


@limited("database")
@task
def load(part: int) -> None:
    work("database", 1.5)


@limited("api")
@task
def notify(channel: str) -> None:
    work("api", 1.0)


@limited
@flow(flow_run_name=sys.argv[1])
def penstock_demo() -> None:
    futures = [*load.map([1, 2, 3, 4]), notify.submit("mail"), notify.submit("chat")]
    for future in futures:
        future.result()


if __name__ == "__main__":
    with tags(*sys.argv[2:]):
        penstock_demo()
