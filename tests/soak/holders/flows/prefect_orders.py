"""The soak's flow, for a worker that holds its run back: tasks in threads of its process, a block with two pools."""

import time

from holding import holding, run_slots
from penstock_prefect import limited, slots
from prefect import flow, task


@limited("warehouse")
@task
def extract(run: str, part: int) -> None:
    with holding("prefect", f"extract[{part}]", run, {"pool:warehouse": 1}):
        time.sleep(4.0)


@limited("api")
@task
def publish(run: str) -> None:
    with holding("prefect", "publish", run, {"pool:api": 1}):
        time.sleep(3.0)


@flow
def prefect_orders(run: str, customer: str) -> None:
    with holding("prefect", "flow", run, run_slots(customer)):
        futures = [*(extract.submit(run, part) for part in range(2)), publish.submit(run)]
        for future in futures:
            future.result()
        with slots("licence", "api"), holding("prefect", "convert", run, {"pool:licence": 1, "pool:api": 1}):
            time.sleep(1.5)
