"""What a DAG's author can say: pools of tasks, of mapped indexes, of groups; limits of runs, and within them."""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, TaskGroup, dag, get_current_context, task
from penstock_airflow import limited
from recording import record

sys.path.insert(0, str(Path(__file__).parents[2]))
from hostile import NO_TEMPLATES, usable

RECORD = f"{sys.executable} {Path(__file__).with_name('recording.py')}"
PER_CUSTOMER = [{"key": "customer", "value": {"applyLimitPerUniqueValue": True}, "limit": 1}]


def wait_for_company(name: str, number: int, seconds: float = 120.0) -> None:
    """Return when so many are in progress under this name, or fail: they then were at once."""
    folder = Path(os.environ["INTERVALS_FOLDER"])
    context = get_current_context()
    (folder / f"{name}.{context['run_id']}.{context['ti'].map_index}.here").touch()
    deadline = time.monotonic() + seconds
    while len(list(folder.glob(f"{name}.*.here"))) < number:
        if time.monotonic() > deadline:
            raise TimeoutError(f"fewer than {number} of {name} are in progress together")
        time.sleep(0.1)


with DAG("said_of_tasks", schedule=None):

    @limited("first", "second")
    @task
    def both() -> None:
        record("both")

    @task
    @limited("first")
    def one() -> None:
        record("one")

    limited("second")(BashOperator(task_id="other", bash_command=f"{RECORD} other"))

    @task
    def weigh(slots: int) -> None:
        record(f"weighs_{slots}")

    limited("database:{{ slots }}")(weigh).expand(slots=[1, 1, 2])

    @limited("table_{{ table }}", tags={"table": "{{ table }}"})
    @task
    def load(table: str) -> None:
        record(f"table_{table}")

    load.expand(table=["t1", "t1", "t2"])

    with limited("grouped")(TaskGroup("group")):
        BashOperator(task_id="classic", bash_command=f"{RECORD} grouped")

        @task
        def decorated() -> None:
            record("grouped")

        decorated()

    both(), one()

with limited(max_concurrent=1, tag_concurrency_limits=PER_CUSTOMER)(DAG("within", schedule=None)):

    @limited(tags={"customer": "{{ customer }}"})
    @task(retries=1)
    def serve(customer: str) -> None:
        context = get_current_context()
        if (context["dag_run"].conf or {}).get("together"):
            wait_for_company("served", 2)
        record(f"within_{context['run_id']}")
        record(f"within_{context['run_id']}_{customer}")

    serve.expand(customer=["a", "a", "b"])


def two_steps() -> None:
    """Two tasks in a row, so that a run outlives each of them."""

    @task
    def step(number: int) -> int:
        context = get_current_context()
        record(f"{context['dag'].dag_id}_{context['run_id']}")
        return number + 1

    step(step(1))  # type: ignore[arg-type]


for name in ("of_a_team_1", "of_a_team_2"):
    limited(tags={"team": "analytics"})(dag(dag_id=name, schedule=None)(two_steps))()

dag(
    dag_id="filled", schedule="@yearly", start_date=datetime(2020, 1, 1, tzinfo=UTC), catchup=False, max_active_runs=16
)(two_steps)()

with DAG("in_rooms", schedule=None):

    @limited("rooms")
    @task
    def enter_room() -> None:
        record(f"in_rooms_{get_current_context()['run_id']}")

    leave_room = BashOperator(task_id="leave_room", bash_command=f"{RECORD} in_rooms_{{{{ run_id }}}}")
    enter_room() >> limited("rooms")(leave_room)

with DAG("own_pools", schedule=None):

    @task
    def alone(number: int) -> None:
        record("alone")

    alone.expand(number=[1, 2])

with DAG("blocked", schedule=None):
    for how in ("skip", "fail"):
        limited("shut", on_blocked=how)(BashOperator(task_id=how, bash_command=f"{RECORD} blocked"))
    timing_out = BashOperator(task_id="timing_out", bash_command=f"{RECORD} blocked")
    limited("shut", wait_timeout_seconds=2)(timing_out)

with limited("exclusive", on_blocked="skip")(DAG("exclusive", schedule=None, max_active_runs=16)):

    @task
    def hold_on() -> None:
        while not (Path(os.environ["INTERVALS_FOLDER"]) / "let_go").exists():
            time.sleep(0.1)

    hold_on() >> BashOperator(task_id="afterwards", bash_command=f"{RECORD} exclusive", trigger_rule="all_done")


with DAG("hostile", schedule=None):

    @limited("{{ pool }}", tags={"text": "{{ text }}"})
    @task
    def named(pool: str, text: str) -> None:
        record(f"hostile {text}", 0.0)

    named.expand_kwargs([{"pool": usable(text), "text": text} for text in NO_TEMPLATES])
