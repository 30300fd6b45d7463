"""One DAG for every path by which a task's slot comes back, each in a pool of its own with room for one."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

from airflow.providers.common.compat.sdk import AirflowSkipException
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.operators.python import PythonOperator
from airflow.providers.standard.sensors.python import PythonSensor
from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import DAG, BaseOperator, get_current_context
from penstock_airflow import limited
from recording import record

SHORT, LONG = 0.5, 90.0


def work(path: str, first: float = SHORT) -> None:
    """`first` seconds in the first attempt, which somebody may end from outside; then short ones."""
    record(path, first if get_current_context()["ti"].try_number == 1 else SHORT)


def fail(path: str, attempts: int = 1) -> None:
    work(path)
    if get_current_context()["ti"].try_number <= attempts:
        raise ValueError("meant to fail")


def work_until_let_go(path: str) -> None:
    record(path, LONG, str(Path(os.environ["INTERVALS_FOLDER"]) / f"{path}.let_go"))


def skip(path: str) -> None:
    work(path)
    raise AirflowSkipException("meant to be skipped")


def poke(path: str, times: int) -> bool:
    """True at the last of so many times."""
    record(path, SHORT)
    folder = Path(os.environ["INTERVALS_FOLDER"])
    return sum(f'"{path}"' in interval.read_text() for interval in folder.glob("*.json")) >= times


class DeferringOperator(BaseOperator):
    """Leaves the worker once by itself, as operators that wait for an external job do."""

    def execute(self, context):
        record(self.dag.dag_id, SHORT)
        self.defer(trigger=TimeDeltaTrigger(timedelta(seconds=8)), method_name="finish")

    def finish(self, context, event=None):
        record(self.dag.dag_id, SHORT)


def dag(path: str) -> DAG:
    # By `airflow dags test` one is run that is paused: a scheduler that runs beside it would start the same task.
    return DAG(
        path,
        schedule=None,
        default_args={"pool": path, "retry_delay": timedelta(seconds=1)},
        tags=["liveness"],
        is_paused_upon_creation=path == "live_dags_test",
    )


def python(path: str, callable_=work, *arguments: object, **options: object) -> None:
    with dag(path):
        PythonOperator(task_id="holder", python_callable=callable_, op_args=[path, *arguments], **options)


python("live_success")
python("live_failure", fail)
python("live_skip", skip)
python("live_retry", fail, retries=1)
python("live_execution_timeout", work, LONG, execution_timeout=timedelta(seconds=2))
python("live_sigterm", work, 4.0, retries=1)
python("live_sigkill", work, LONG, retries=1)
python("live_mark_success", work, LONG, retries=1)
python("live_mark_failed", work, LONG, retries=1)
python("live_clear", work, LONG, retries=1)
python("live_zombie", work, 45.0, retries=1)
python("live_scheduler_killed", work, LONG, retries=1)
python("live_scheduler_restarted", work_until_let_go)
python("live_triggerer_killed")
python("live_no_triggerer")
python("live_dags_test", work, 2.0)

for path in ("live_deferral_held", "live_deferral_released"):
    with dag(path):
        DeferringOperator(task_id="holder")

# Airflow up to 3.3.2 fails a sensor that it reschedules for less than about 5 s (apache/airflow#72716).
for mode, times, pause in (("poke", 3, 1), ("reschedule", 2, 10)):
    with dag(path := f"live_sensor_{mode}"):
        PythonSensor(task_id="holder", python_callable=poke, op_args=[path, times], mode=mode, poke_interval=pause)

with dag("live_setup_teardown"):
    made = PythonOperator(task_id="make", python_callable=work, op_args=["live_setup_teardown"]).as_setup()
    used = PythonOperator(task_id="holder", python_callable=work, op_args=["live_setup_teardown"])
    (
        made
        >> used
        >> PythonOperator(task_id="remove", python_callable=work, op_args=["live_setup_teardown"]).as_teardown(
            setups=made
        )
    )

with DAG("live_scheduler_waits", schedule=None):
    limited("live_scheduler_restarted")(
        PythonOperator(task_id="waits", python_callable=work, op_args=["live_scheduler_restarted"])
    )

with dag("live_empty"):
    EmptyOperator(task_id="holder")
