"""The tags that Prefect's claims carry are those that `check` and `doctor` know of."""

from __future__ import annotations

from penstock.host_tags import OP_TAGS, RUN_TAGS
from penstock_prefect.claims import FlowFacts, TaskFacts, op_tags, run_tags

FLOW = FlowFacts(flow_run_id="r", flow_name="f", deployment_name="d", work_pool_name="w", scheduled=True)


def test_the_tags_of_runs_and_of_tasks() -> None:
    tags, _ = run_tags(FLOW)
    assert tags.keys() == {key for key in RUN_TAGS if key.startswith("prefect/")}
    assert {tags["prefect/schedule"]} == RUN_TAGS["prefect/schedule"]
    tags, _ = op_tags(TaskFacts(task_run_id="t", task_name="n"))
    assert tags.keys() == {key for key in OP_TAGS if key.startswith("prefect/")}
