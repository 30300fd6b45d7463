"""Not now, then not at all: a task that is skipped when there is no room, and one that waits for a bounded time."""

from __future__ import annotations

from airflow.sdk import dag, task

from penstock_airflow import limited


@dag(schedule=None, tags=["penstock"])
def penstock_example_skip() -> None:
    @limited("refresh", on_blocked="skip")
    @task
    def refresh() -> None:
        """Of several at once one runs and the others are skipped: the log says who held the slot."""

    @limited("database", wait_timeout_seconds=3600)
    @task(trigger_rule="all_done")
    def clean() -> None:
        """Fails when it has waited for an hour."""

    refresh() >> clean()


penstock_example_skip()
