"""DAGs whose runs are limited: two tasks in a row, so that a run outlives each of its tasks; and one without end."""

from __future__ import annotations

from airflow.sdk import DAG, get_current_context, task
from recording import record

with DAG("runs", schedule=None, max_active_runs=16):

    @task
    def step(number: int) -> int:
        record(get_current_context()["run_id"])
        return number + 1

    step(step(1))  # type: ignore[arg-type]

with DAG("begun_again", schedule=None):

    @task
    def work() -> None:
        record("begun_again", 0.5 if get_current_context()["ti"].try_number == 1 else 12.0)

    work()

with DAG("endless", schedule=None, max_active_runs=16):

    @task
    def hold_on() -> None:
        record("endless", 600)

    hold_on()
