"""One task in a pool that its DAG is named after; the conf says what it is called and how long it works."""

from __future__ import annotations

from airflow.sdk import DAG, get_current_context, task
from recording import record

for pool in ("away_comes", "away_ends", "away_holds", "away_waits", "shared"):
    with DAG(pool, schedule=None, max_active_runs=16):

        @task(pool=pool)
        def work() -> None:
            conf = get_current_context()["dag_run"].conf
            record(conf["name"], conf["seconds"], conf.get("until"))

        work()
