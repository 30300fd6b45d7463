"""Limits within one run, by tag: at most four tasks of a run at once, and one for each customer."""

from __future__ import annotations

from airflow.sdk import dag, task

from penstock_airflow import limited

ONE_EACH = {"key": "customer", "value": {"applyLimitPerUniqueValue": True}, "limit": 1}


@limited(max_concurrent=4, tag_concurrency_limits=[ONE_EACH])
@dag(schedule=None, tags=["penstock"])
def penstock_example_tags() -> None:
    @limited(tags={"customer": "{{ customer }}"})
    @task
    def serve(customer: str) -> str:
        """Without @limited on the DAG, the `ops:` block of the store's configuration would say how many."""
        return customer

    serve.expand(customer=["ada", "ada", "grace"])


penstock_example_tags()
