"""One DAG of every usual kind of task, as its author wrote it: nothing in it knows of Penstock."""

from __future__ import annotations

import sys
from pathlib import Path

from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, task
from recording import record

# Each task is a process: twenty that begin at once on two cores stand still for longer than Airflow allows.
with DAG("kinds", schedule=None, tags=["team:data"], max_active_tasks=6):
    for number in range(2):
        PythonOperator(task_id=f"python_{number}", python_callable=record, op_args=["database"], pool="database")

    @task(pool="database")
    def decorated() -> None:
        record("database")

    @task(pool="database")
    def mapped(number: int) -> int:
        record("database")
        return number

    decorated()
    mapped.expand(number=[1, 2, 3])
    script = Path(__file__).with_name("recording.py")
    BashOperator(task_id="bash", bash_command=f"{sys.executable} {script} database", pool="database")
    BashOperator.partial(task_id="bash_mapped", pool="api").expand(
        bash_command=[f"{sys.executable} {script} api", f"{sys.executable} {script} api && true"]
    )
    PythonOperator(task_id="unlimited", python_callable=record, op_args=["unlimited", 0.1])
