"""What Airflow reads about the provider. Every Airflow process imports this module: it imports nothing itself."""

from __future__ import annotations

from typing import Any

CONNECTION_TYPE: dict[str, Any] = {
    "connection-type": "penstock",
    "hook-class-name": "penstock_airflow.hook.PenstockHook",
    "hook-name": "Penstock",
    "ui-field-behaviour": {
        "hidden-fields": [],
        "relabeling": {"schema": "Database", "extra": "More (JSON)"},
        "placeholders": {
            "host": "db.example, or the path of an SQLite file",
            "schema": "penstock",
            "login": "penstock",
            "port": "5432",
        },
    },
    "conn-fields": {
        "backend": {
            "label": "Kind of database",
            "description": "SQLite is for one machine; its file's path goes into Host.",
            "schema": {
                "type": ["string", "null"],
                "enum": ["postgresql", "mysql", "sqlite"],
                "default": "postgresql",
            },
        },
        "options": {
            "label": "Options of the driver",
            "description": "As at the end of a SQLAlchemy URL: sslmode=require&connect_timeout=5",
            "schema": {"type": ["string", "null"]},
        },
    },
}


def get_provider_info() -> dict[str, Any]:
    """The provider's description in the form of Airflow's `provider_info.schema.json`."""
    return {
        "package-name": "penstock",
        "name": "Penstock",
        "description": "Concurrency limits shared with Prefect and plain processes: pools, run limits, tag limits.",
        "integrations": [{"integration-name": "Penstock", "tags": ["software"]}],
        "hooks": [{"integration-name": "Penstock", "python-modules": ["penstock_airflow.hook"]}],
        "triggers": [{"integration-name": "Penstock", "python-modules": ["penstock_airflow.trigger"]}],
        "connection-types": [CONNECTION_TYPE],
        "extra-links": ["penstock_airflow.plugin.HolderLink"],
        "cli": ["penstock_airflow.cli.get_cli_commands"],
        "config": {
            "penstock": {
                "description": "Where the limits are kept, and how tasks wait for them.",
                "options": {
                    "store_url": _option(
                        "SQLAlchemy URL of the store that holds the limits; the same for every host that shares them. "
                        "Also ``store_url_cmd``, a command that prints it, and ``store_url_secret``, its name in the "
                        "secrets backend. Absent: ``conn_id``, else ``PENSTOCK_STORE_URL``. Without any of them "
                        "Penstock is inactive.",
                        example="postgresql+psycopg://penstock:secret@db.example/penstock",
                        sensitive=True,
                    ),
                    "conn_id": _option(
                        "The Airflow connection that names the store, when no URL is set: one of type Penstock, or an "
                        "existing one of type postgres, mysql or sqlite.",
                        example="penstock_default",
                    ),
                    "deployment": _option(
                        "The name of this Airflow installation among all that share the store. "
                        "Absent: ``PENSTOCK_DEPLOYMENT``, else ``airflow``.",
                        example="airflow-production",
                    ),
                    "pools": _option(
                        "Comma-separated globs of Airflow pools that count as Penstock pools although they have no "
                        "limit of their own in the store; the default limit reaches them only so. "
                        "A bare ``*`` leaves out ``default_pool``.",
                        example="database,api_*",
                        default="",
                    ),
                    "run_tag_keys": _option(
                        "Comma-separated keys of a run's conf, else of its params, that become run tags.",
                        example="team,customer",
                        default="",
                    ),
                    "pool_per_op": _option(
                        "Comma-separated globs of ``dag_id.task_id`` (``dag_id/task_id`` where the DAG's id has a "
                        "dot): each of these tasks gets a pool of its own, named ``op/DEPLOYMENT/dag_id.task_id``, "
                        "with the default limit, else one slot. ``penstock pools ops`` lists them.",
                        example="etl.*,report.send",
                        default="",
                    ),
                    "short_block_seconds": _option(
                        "How long a task waits for its slots in the worker before it defers.", kind="float", default="3"
                    ),
                    "min_deferral_seconds": _option(
                        "How long a deferral lasts at least. Airflow up to 3.3.2 fails a task that resumes within "
                        "about 5 seconds of its deferral (apache/airflow#72716); 0 where it is mended.",
                        kind="float",
                        default="10",
                    ),
                    "session_ttl_seconds": _option(
                        "After how many seconds without a sign of life a task's slots are given to others.",
                        kind="float",
                        default="60",
                    ),
                    "waiting": _option(
                        "How a task waits after ``short_block_seconds``: ``defer`` (in the triggerer, no worker is "
                        "used), ``reschedule`` (the task comes back to look now and then), ``block`` (in the worker). "
                        "Where no triggerer runs, ``defer`` becomes ``reschedule``.",
                        example="reschedule",
                        default="defer",
                    ),
                    "waiting_by_pool": _option(
                        "Comma-separated ``glob=way`` for the tasks of certain pools; the first glob that matches "
                        "counts. Of a task with several pools the way counts that frees the worker most: ``defer``, "
                        "then ``reschedule``, then ``block``.",
                        example="api=block,license_*=reschedule",
                        default="",
                    ),
                    "triggerer_queues": _option(
                        "Comma-separated globs of task queues that have a triggerer of their own (``airflow triggerer "
                        "--queues``, where ``[triggerer] queues_enabled`` is set): their tasks wait there, those of "
                        "other queues in a triggerer without queues.",
                        example="default,spark_*",
                        default="*",
                    ),
                    "reschedule_seconds": _option(
                        "After how many seconds a rescheduled task looks again, 30 to 240. Its place in the queue is "
                        "kept; slots that it is granted meanwhile are kept for 60 seconds.",
                        kind="float",
                        default="30",
                    ),
                    "release_while_deferred": _option(
                        "Comma-separated globs of pools whose slots an operator gives back while it is deferred by "
                        "itself. All others are held meanwhile, as the job that it waits for is still running.",
                        example="api,small_*",
                        default="",
                    ),
                    "exempt_setup_teardown": _option(
                        "Whether setup and teardown tasks run without limits.", kind="boolean", default="False"
                    ),
                    "enforcement": _option(
                        "``enforce``; ``observe``: nothing waits, what would have waited is logged and recorded; "
                        "``off``: the store is not asked. Absent: ``PENSTOCK_ENFORCEMENT``, else ``enforce``.",
                        example="observe",
                    ),
                    "on_store_error": _option(
                        "What a task does while the store cannot be reached: ``wait`` for up to "
                        "``store_retry_seconds`` and then fail, ``fail`` at once, ``run`` without limits and say so "
                        "loudly. Absent: ``PENSTOCK_ON_STORE_ERROR``, else ``wait``.",
                        example="fail",
                    ),
                    "store_retry_seconds": _option(
                        "For how long a task asks a store again that cannot be reached.", kind="float", default="600"
                    ),
                    "page": _option(
                        "Whether the concurrency page stands in Airflow's menu (Browse, Concurrency).",
                        kind="boolean",
                        default="True",
                    ),
                },
            }
        },
    }


def _option(
    description: str,
    *,
    kind: str = "string",
    default: str | None = None,
    example: str | None = None,
    sensitive: bool = False,
) -> dict[str, Any]:
    option = {
        "description": description,
        "version_added": "0.1.0",
        "type": kind,
        "example": example,
        "default": default,
    }
    return option | ({"sensitive": True} if sensitive else {})
