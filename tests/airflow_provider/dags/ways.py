"""DAGs whose tasks wait in every way: outside of the worker or in it, with a time-out, not at all; or hold slots."""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.operators.python import PythonOperator
from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import DAG, BaseOperator, get_current_context
from penstock_airflow import limited
from recording import record


def named() -> None:
    record(get_current_context()["run_id"], 2.0)


for way in ("defer", "reschedule", "block"):
    with DAG(f"way_{way}", schedule=None):
        for number in range(2):
            limited(f"way_{way}")(
                PythonOperator(task_id=f"task_{number}", python_callable=record, op_args=[f"way_{way}", 6.0])
            )

with DAG("way_timeout", schedule=None):
    limited("way_timeout", wait_timeout_seconds=15)(
        PythonOperator(task_id="times_out", python_callable=record, op_args=["timed_out"])
    )

with DAG("way_skip", schedule=None):
    for number in range(2):
        limited("way_skip", on_blocked="skip")(
            PythonOperator(task_id=f"task_{number}", python_callable=record, op_args=["way_skip", 8.0])
        )

with DAG("way_fail", schedule=None):
    for number in range(2):
        limited("way_fail", on_blocked="fail")(
            PythonOperator(task_id=f"task_{number}", python_callable=record, op_args=["way_fail", 8.0])
        )

with limited("one_at_a_time", on_blocked="skip")(DAG("way_skipped_run", schedule=None, max_active_runs=4)):
    PythonOperator(task_id="first", python_callable=record, op_args=["skipped_run", 12.0]) >> PythonOperator(
        task_id="last", python_callable=named
    )


class DeferringOperator(BaseOperator):
    """Leaves the worker once by itself; `ends` from the trigger, without another worker."""

    def __init__(self, *, ends: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.ends = ends

    def execute(self, context):
        record(self.task_id, 0.5)
        trigger = TimeDeltaTrigger(timedelta(seconds=8), end_from_trigger=self.ends)
        self.defer(trigger=trigger, method_name="finish", kwargs={"job": {"id": 7}})

    def finish(self, context, event=None, job=None):
        record(self.task_id, 0.5)
        assert job == {"id": 7}


for pool in ("kept", "released"):
    with DAG(f"deferral_{pool}", schedule=None):
        limited(pool)(DeferringOperator(task_id=f"defers_{pool}", priority_weight=10))
        limited(pool)(PythonOperator(task_id=f"beside_{pool}", python_callable=record, op_args=[f"beside_{pool}", 0.5]))

with DAG("deferral_ends", schedule=None):
    limited("ends")(DeferringOperator(task_id="ends", ends=True, priority_weight=10))
    limited("ends")(PythonOperator(task_id="after", python_callable=record, op_args=["after_end", 0.5]))

with DAG("only_empty", schedule=None):
    EmptyOperator(task_id="first") >> EmptyOperator(task_id="last")

for name, weight in (("low", 1), ("high", 50)):
    with DAG(f"weight_{name}", schedule=None):
        limited("weighed")(
            PythonOperator(
                task_id="waits", python_callable=record, op_args=[f"weight_{name}", 1.0], priority_weight=weight
            )
        )

# Paused, for it is run by `airflow dags test`: a scheduler that runs beside it would start the same tasks.
with DAG("exempt_setup", schedule=None, is_paused_upon_creation=True):
    make, use, remove = (
        PythonOperator(task_id=name, python_callable=record, op_args=[f"exempt_{name}", 0.2])
        for name in ("make", "use", "remove")
    )
    limited("exempt")(make.as_setup()) >> use >> limited("exempt")(remove.as_teardown(setups=make))

with DAG("withdrawn", schedule=None):
    limited("withdrawn")(PythonOperator(task_id="waits", python_callable=record, op_args=["withdrawn"]))
