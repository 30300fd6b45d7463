"""Every way in which a task can end, all in one pool with room for one."""

from __future__ import annotations

import json
import os
import time
from datetime import timedelta
from pathlib import Path

from airflow.providers.common.compat.sdk import AirflowSkipException
from airflow.providers.standard.operators.python import PythonOperator
from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import DAG, BaseOperator, task
from recording import record

FOLDER = Path(os.environ["INTERVALS_FOLDER"])
RETURNED = FOLDER / "deferring"  # a file beside the intervals; what a self-deferring task was resumed with
DEFERRED = FOLDER / "deferred"


def fails() -> None:
    record("narrow", 0.2)
    raise ValueError("meant to fail")


def skips() -> None:
    record("narrow", 0.2)
    raise AirflowSkipException("meant to be skipped")


def refuses(context) -> None:
    record("narrow", 0.2)
    raise ValueError("the user's own hook fails")


class DeferringOperator(BaseOperator):
    """Leaves the worker once by itself, as operators that wait for an external job do."""

    def execute(self, context):
        record("narrow", 0.2)
        DEFERRED.touch()
        self.defer(
            trigger=TimeDeltaTrigger(timedelta(seconds=10)),
            method_name="finish",
            kwargs={"job": {"id": 7, "name": "x"}},
        )

    def finish(self, context, event=None, job=None):
        record("narrow", 0.2)
        RETURNED.write_text(json.dumps({"job": job, "event": str(event)}))


with DAG("outcomes", schedule=None):
    PythonOperator(task_id="fails", python_callable=fails, pool="narrow")
    PythonOperator(task_id="skips", python_callable=skips, pool="narrow")
    PythonOperator(task_id="hook_fails", python_callable=record, op_args=["narrow"], pool="narrow", pre_execute=refuses)
    PythonOperator(
        task_id="retries",
        python_callable=fails,
        pool="narrow",
        retries=1,
        retry_delay=timedelta(seconds=1),
    )

with DAG("deferring", schedule=None):

    @task
    def when_deferred() -> None:
        while not DEFERRED.exists():
            time.sleep(0.1)

    DeferringOperator(task_id="deferring", pool="narrow")
    # Takes the slot that the other left, and still has it when the other comes back.
    when_deferred() >> PythonOperator(task_id="between", python_callable=record, op_args=["narrow", 16], pool="narrow")
