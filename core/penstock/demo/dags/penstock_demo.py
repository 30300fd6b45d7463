"""An ordinary DAG: nothing in it knows of Penstock. Its tasks name Airflow's own pools."""

import os
import time

from airflow.sdk import DAG, task


def work(pool: str, seconds: float) -> None:
    begun = time.monotonic()
    time.sleep(seconds)
    with open(os.environ["PENSTOCK_DEMO_INTERVALS"], "a") as file:
        file.write(f"pool:{pool} {begun} {time.monotonic()}\n")


with DAG("penstock_demo", schedule=None, params={"team": ""}):

    @task(pool="database")
    def extract(part: int) -> int:
        work("database", 1.5)
        return part

    @task(pool="api")
    def publish() -> None:
        work("api", 1.0)

    extract.expand(part=[1, 2, 3, 4])
    publish()
    publish.override(task_id="announce")()
