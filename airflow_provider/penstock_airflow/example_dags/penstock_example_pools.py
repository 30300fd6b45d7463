"""A pool that every DAG, flow and script on the store shares; Airflow's own `pool=` counts as well."""

from __future__ import annotations

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import dag, task

from penstock_airflow import limited


@dag(schedule=None, tags=["penstock"])
def penstock_example_pools() -> None:
    @limited("database")
    @task
    def load() -> None:
        """Takes one slot of the pool `database` before it starts, and gives it back when it ends."""

    report = limited("database")(BashOperator(task_id="report", bash_command="echo reporting"))

    # No edit at all: Airflow's pool of this name counts once it has a limit in the store.
    native = BashOperator(task_id="native", bash_command="echo exporting", pool="database", pool_slots=1)

    load() >> report >> native


penstock_example_pools()
