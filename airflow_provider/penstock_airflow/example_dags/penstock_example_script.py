"""Slots for a part of a script only: `penstock run` holds them while its command runs.

The store's URL must be in the worker's environment as PENSTOCK_STORE_URL.
"""

from __future__ import annotations

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import dag


@dag(schedule=None, tags=["penstock"])
def penstock_example_script() -> None:
    BashOperator(
        task_id="nightly",
        bash_command="echo extracting without any slot && penstock run --pool database -- echo loading under one",
    )


penstock_example_script()
