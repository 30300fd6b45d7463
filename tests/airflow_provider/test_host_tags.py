"""The tags that Airflow's claims carry are those that `check` and `doctor` know of."""

from __future__ import annotations

from airflow.utils.types import DagRunType
from penstock.config import Concurrency
from penstock.host_tags import OP_TAGS, RUN_TAGS
from penstock_airflow.claims import TaskFacts, op_claim, run_claim

FACTS = TaskFacts(
    dag_id="d",
    run_id="r",
    task_id="t",
    task_group="g",
    owner="o",
    operator="BashOperator",
    queue="q",
    run_type="backfill",
    triggering_user="u",
)


def test_the_tags_of_runs_and_of_tasks() -> None:
    run = run_claim(FACTS, deployment="prod", concurrency=Concurrency())
    assert run.tags.keys() == {key for key in RUN_TAGS if key.startswith("airflow/")}
    op = op_claim(FACTS, deployment="prod", concurrency=Concurrency())
    assert op.tags.keys() == {key for key in OP_TAGS if key.startswith("airflow/")}


def test_the_types_of_runs() -> None:
    assert {kind.value for kind in DagRunType} == RUN_TAGS["airflow/run_type"]
