"""Several pools at once, with weights: all slots in one step, or none."""

from __future__ import annotations

from airflow.sdk import dag, task, task_group

from penstock_airflow import limited


@dag(schedule=None, tags=["penstock"])
def penstock_example_several_pools() -> None:
    @limited("database:2", "api")
    @task(priority_weight=10)
    def sync() -> None:
        """Two slots of `database` and one of `api`; its priority_weight puts it before others in the queue."""

    @limited("api")
    @task_group
    def partners() -> None:
        """What is said of a group holds for each task in it."""

        @task
        def ask() -> None: ...

        @limited("database")
        @task
        def store() -> None:
            """Takes a slot of `api` for its group, and one of `database` for itself."""

        ask() >> store()

    sync() >> partners()


penstock_example_several_pools()
