"""A pool for each value that a task is mapped over: one load at a time for each table, all tables side by side."""

from __future__ import annotations

from airflow.sdk import dag, task

from penstock_airflow import limited


@dag(schedule=None, tags=["penstock"])
def penstock_example_mapped() -> None:
    @limited("table_{{ table }}")
    @task
    def load(table: str) -> str:
        """The name of the pool is a template that sees the function's arguments."""
        return table

    @limited("database:{{ slots }}")
    @task
    def weigh(slots: int) -> int:
        """So may be the slots: a wide index takes more."""
        return slots

    load.expand(table=["orders", "orders", "customers"]) >> weigh.expand(slots=[1, 2])


penstock_example_mapped()
