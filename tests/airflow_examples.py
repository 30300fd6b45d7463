"""Which of the example DAGs that ship with Airflow the tests run."""

from __future__ import annotations

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
SELECTED = [dag_id for dag_ids in FILES.values() for dag_id in dag_ids]
