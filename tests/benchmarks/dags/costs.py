"""What the benchmark in Airflow runs: tasks that do nothing, one after the other; and a long queue before one slot."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, chain, task


def nothing() -> None:
    """A task whose time is all Airflow's and the gate's."""


with DAG("sequence", schedule=None):
    chain(*(PythonOperator(task_id=f"step_{number}", python_callable=nothing) for number in range(20)))

with DAG("queue", schedule=None, max_active_tasks=1000):

    @task(pool="licence")
    def pass_through(number: int) -> None:
        began = time.monotonic()
        path = Path(os.environ["PASSED_FOLDER"]) / f"{number}.json"
        path.write_text(json.dumps({"began": began, "ended": time.monotonic()}))

    pass_through.expand(number=list(range(int(os.environ["QUEUE_LENGTH"]))))
