"""Thirty mapped tasks after a limit of three, once for each way of waiting; the conf says how long each works."""

from __future__ import annotations

from airflow.sdk import DAG, get_current_context, task
from recording import record

for way in ("defer", "block", "reschedule"):
    with DAG(pool := f"thirty_{way}", schedule=None):

        @task(pool=pool)
        def work(number: int) -> None:
            context = get_current_context()
            record(context["dag"].dag_id, context["dag_run"].conf["seconds"])

        work.expand(number=list(range(30)))
