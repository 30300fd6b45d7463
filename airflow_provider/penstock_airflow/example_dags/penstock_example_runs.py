"""Limits of whole runs: the run total, a limit for all DAGs of one team, and a pool that a run keeps to its end.

In the store's configuration:

    runs:
      max_concurrent_runs: 15
      tag_concurrency_limits:
        - {key: team, value: analytics, limit: 3}
"""

from __future__ import annotations

from airflow.sdk import dag, task

from penstock_airflow import limited


@limited("warehouse")  # one slot of it for the whole run
@dag(schedule=None, tags=["penstock", "team:analytics"])  # the DAG's tags are the run's
def penstock_example_runs() -> None:
    @task
    def extract() -> None:
        """The first task of a run takes the run's slots; its other tasks go on under them."""

    @task
    def publish() -> None: ...

    extract() >> publish()


penstock_example_runs()
