"""The example DAGs that ship with Airflow: which of them the tests run, which not and why, and how they run.

A plain run takes a few; `PENSTOCK_TEST_EXAMPLE_DAGS=all` every one that needs no network, no human, no other service.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow_process import ask
from penstock.demo.airflow_host import FINISHED, AirflowHost

ALL = os.environ.get("PENSTOCK_TEST_EXAMPLE_DAGS") == "all"
FILES = {
    "example_dynamic_task_mapping.py": ("example_dynamic_task_mapping", "example_task_group_mapping"),
    "example_setup_teardown_taskflow.py": ("example_setup_teardown_taskflow",),
    "example_simplest_dag.py": ("example_simplest_dag",),
    "example_skip_dag.py": ("example_skip_dag",),
    "example_task_group.py": ("example_task_group",),
    "example_time_delta_sensor_async.py": ("example_time_delta_sensor_async",),
    "example_trigger_target_dag.py": ("example_trigger_target_dag",),
    "example_xcomargs.py": ("example_xcom_args",),
}
"""A few files of `airflow.example_dags`, with the DAGs taken: mapped tasks and groups of them, setup and teardown,
skips and trigger rules, groups, a task that defers by itself, bash, XComs. Together they take less than a minute."""
A_FEW = tuple(dag_id for dag_ids in FILES.values() for dag_id in dag_ids)
OTHERS = (
    "aggregate_regional_sales",
    "asset1_producer",
    "asset2_producer",
    "asset_alias_example_alias_consumer",
    "asset_alias_example_alias_consumer_with_no_taskflow",
    "asset_alias_example_alias_producer",
    "asset_alias_example_alias_producer_with_no_taskflow",
    "asset_consumes_1",
    "asset_consumes_1_and_2",
    "asset_consumes_1_never_scheduled",
    "asset_consumes_unknown_never_scheduled",
    "asset_produces_1",
    "asset_produces_2",
    "asset_s3_bucket_consumer",
    "asset_s3_bucket_consumer_with_no_taskflow",
    "asset_s3_bucket_producer",
    "asset_s3_bucket_producer_with_no_taskflow",
    "clean_and_combine_player_stats",
    "compute_player_odds",
    "conditional_asset_and_time_based_timetable",
    "consume_1_and_2_with_asset_expressions",
    "consume_1_or_2_with_asset_expressions",
    "consume_1_or_both_2_and_3_with_asset_expressions",
    "consumes_asset_decorator",
    "daily_inference",
    "daily_team_a_rollup",
    "example_asset_state_store_consumer",
    "example_asset_state_store_producer",
    "example_asset_with_watchers",
    "example_bash_decorator",
    "example_bash_operator",
    "example_branch_datetime_operator",
    "example_branch_datetime_operator_2",
    "example_branch_datetime_operator_3",
    "example_branch_dop_operator_v3",
    "example_branch_labels",
    "example_complex",
    "example_custom_weight",
    "example_display_name",
    "example_dynamic_task_mapping_with_no_taskflow_operators",
    "example_external_task",
    "example_external_task_marker_child",
    "example_external_task_marker_parent",
    "example_failed_dag",
    "example_measurement_correction_decorator",
    "example_measurement_correction_operator",
    "example_nested_branch_dag",
    "example_params_trigger_ui",
    "example_params_ui_tutorial",
    "example_passing_params_via_test_command",
    "example_sensor_decorator",
    "example_setup_teardown",
    "example_short_circuit_decorator",
    "example_short_circuit_operator",
    "example_task_group_decorator",
    "example_task_mapping_second_order",
    "example_task_state_store",
    "example_task_state_store_async",
    "example_task_state_store_mapped",
    "example_trigger_controller_dag",
    "example_weekday_branch_operator",
    "example_workday_timetable",
    "example_xcom",
    "example_xcom_args_with_operators",
    "ingest_region_stats",
    "ingest_regional_sales",
    "ingest_team_a_player_stats",
    "latest_only",
    "latest_only_with_trigger",
    "live_region_player_stats",
    "monthly_team_a_rollup",
    "multi_region_player_stats",
    "player_odds_quality_check_wont_ever_to_trigger",
    "regional_stats_breakdown",
    "scatter_live_region_to_segments",
    "segment_region_stats_early_rollup",
    "segment_region_stats_rollup",
    "summarize_live_region_stats",
    "team_analytics_producer",
    "team_b_player_stats",
    "team_c_player_stats",
    "team_ml_consumer",
    "trailing_week_inference",
    "train_weekly_model",
    "tutorial",
    "tutorial_dag",
    "tutorial_taskflow_api",
    "tutorial_taskflow_templates",
)
"""What the option adds."""
_CLASH = "names an asset that another file names otherwise: Airflow takes the one read first, and fails the other"
EXCLUDED = {
    "asset_with_extra_by_context": _CLASH,
    "asset_with_extra_by_yield": _CLASH,
    "asset_with_extra_from_classic_operator": _CLASH,
    "child_dag": "run by way of example_external_task, which triggers it for the same date",
    "example_analytics": "asks S3, Google Cloud Storage and Azure",
    "example_branch_operator": "draws its branches at random; installs packages from the network",
    "example_branch_python_operator_decorator": "draws its branches at random; installs packages from the network",
    "example_dag_decorator": "asks httpbin.org",
    "example_hitl_operator": "waits for a human",
    "example_python_decorator": "installs packages from the network",
    "example_python_operator": "installs packages from the network",
    "example_retry_policy": "asks api.example.com",
    "example_sensors": "waits for an hour",
    "read_asset_event": _CLASH,
    "read_asset_event_from_classic": _CLASH,
    "tutorial_objectstorage": "asks S3 and an air quality service",
    "tutorial_taskflow_api_virtualenv": "installs packages from the network",
}
"""Why a DAG is never run."""
SELECTED = (*A_FEW, *OTHERS) if ALL else A_FEW
CONF = {"example_params_ui_tutorial": {"required_field": "whatever it may be"}}
"""What a DAG cannot be triggered without."""
SETTINGS = {
    "AIRFLOW__CORE__LOAD_EXAMPLES": str(ALL),
    "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False",
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "3600",
}
"""Nothing runs but what is triggered; the files are not parsed again and again, which would take half of a machine."""
if ALL:  # Airflow up to 3.3.2 fails a task that is back before its scheduler, busy then, has heard that it had deferred
    SETTINGS["AIRFLOW__PENSTOCK__MIN_DEFERRAL_SECONDS"] = "20"
AT_ONCE, SECONDS = 9, 300
TaskStates = dict[tuple[str, str, int], str]

_SHIPPED = """
import json
import pathlib
from airflow.dag_processing.bundles.manager import DagBundlesManager
from airflow.dag_processing.dagbag import DagBag
found = {}
for bundle in DagBundlesManager().get_all_dag_bundles():
    if bundle.name == "example_dags" or bundle.name.startswith("apache-airflow-providers-"):
        found |= DagBag(bundle.path, bundle_name=bundle.name).dags
print(json.dumps(sorted(found)))
"""


@dataclass
class Examples:
    """How one run of each went."""

    states: TaskStates = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    in_workers: set[str] = field(default_factory=set)
    """The DAGs that had a task in a worker: tasks of EmptyOperator never reach one."""


def shipped(home: Path) -> set[str]:
    """The ids of all that the installed Airflow and its providers bring along and can load here."""
    return set(ask(_SHIPPED, home, AIRFLOW__CORE__LOAD_EXAMPLES="True"))


def run(host: AirflowHost, run_id: str, *, week: int = 0) -> Examples:
    """One run of each that is selected, a few of them at a time; one that takes more than SECONDS is ended.

    All are of the same date, as some look for each other's: a Monday at midnight, as in any other `week`.
    """
    date = datetime(2026, 1, 5, tzinfo=UTC) + timedelta(weeks=week)
    examples, waiting, began = Examples(), list(SELECTED), dict[str, float]()

    def over() -> bool:
        for dag_id in list(began):
            took = time.monotonic() - began[dag_id]
            examples.runs[dag_id] = host.run_states(dag_id)[run_id]
            has_ended = examples.runs[dag_id] in FINISHED
            if not has_ended and took > SECONDS:
                examples.runs[dag_id] = "too slow"
                print(f"{dag_id} takes more than {SECONDS} s:\n{host.logs(dag_id)}")
                host.mark_run(dag_id, run_id, "failed")
            if has_ended or took > SECONDS:
                del began[dag_id]
                _note(examples, dag_id, host.task_instances(dag_id, run_id), took)
        while waiting and len(began) < AT_ONCE:
            dag_id = waiting.pop(0)
            host.trigger(dag_id, run_id, CONF.get(dag_id), logical_date=date)
            began[dag_id] = time.monotonic()
        return not began

    host.processes.wait_for("the examples are over", over, seconds=SECONDS * (1 + len(SELECTED) / AT_ONCE))
    return examples


def _note(examples: Examples, dag_id: str, tasks: Collection[dict[str, Any]], seconds: float) -> None:
    examples.seconds[dag_id] = seconds
    examples.states |= {(dag_id, task["task_id"], task["map_index"]): task["state"] for task in tasks}
    if any(task["pid"] for task in tasks):
        examples.in_workers.add(dag_id)


def rows(without: Examples, under_limits: Examples) -> list[tuple[str, ...]]:
    """DAG, its task instances, whether their states are equal, seconds without and under limits; then all together."""

    def of(dag_id: str, examples: Examples) -> tuple[str, TaskStates]:
        return examples.runs[dag_id], {key: state for key, state in examples.states.items() if key[0] == dag_id}

    table = []
    for dag_id in sorted(without.seconds):
        one, other = of(dag_id, without), of(dag_id, under_limits)
        times = (f"{examples.seconds[dag_id]:.0f}" for examples in (without, under_limits))
        table.append((dag_id, str(len(one[1])), "yes" if one == other else "NO", *times))
    equal = sum(row[2] == "yes" for row in table)
    return [*table, (f"{len(table)} DAGs", str(len(without.states)), f"{equal} yes", "", "")]
