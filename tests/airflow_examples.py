"""Which of the example DAGs that ship with Airflow the tests run, and why not the others."""

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
EXCLUDED = {
    "example_dag_decorator": "asks a server in the network",
    "tutorial_objectstorage": "asks a server in the network",
    "tutorial_taskflow_api_virtualenv": "installs packages from the network",
    "example_python_operator": "installs packages from the network",
    "example_python_decorator": "installs packages from the network",
    "example_kubernetes_executor": "needs the provider of Kubernetes",
    "example_local_kubernetes_executor": "needs the provider of Kubernetes",
    "example_branch_operator": "takes a branch at random",
    "example_branch_python_operator_decorator": "takes a branch at random",
    "example_branch_dop_operator_v3": "takes a branch by the minute at which it runs",
    "example_asset_state_store_producer": "makes up its data at random",
    "example_task_state_store": "makes up its data at random",
    "example_task_state_store_mapped": "makes up its data at random",
    "example_retry_policy": "fails at random",
    "example_hitl_operator": "waits for a person",
    "example_params_trigger_ui": "wants values that a person types",
    "example_params_ui_tutorial": "wants values that a person types",
    "example_asset_with_watchers": "waits for a file that nobody writes",
    "example_sensors": "waits for files and times that do not come",
    "example_external_task_marker_child": "waits for a run of another DAG at the same logical date",
}
"""DAG id → why a run of it cannot be compared with another one."""
