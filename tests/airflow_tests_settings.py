"""The settings of the Airflows that the tests start, and how limits are put in force beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penstock import changes
from penstock.config import Concurrency
from penstock.engine import Engine

DAGS = Path(__file__).parent / "airflow_provider" / "dags"
SETTINGS = {
    "AIRFLOW__PENSTOCK__POOLS": "api",
    "AIRFLOW__PENSTOCK__RUN_TAG_KEYS": "team,sensor,backfill",
    "AIRFLOW__PENSTOCK__POOL_PER_OP": "own_pools.*,pool_each.*",
    "AIRFLOW__PENSTOCK__SHORT_BLOCK_SECONDS": "1",
    "AIRFLOW__PENSTOCK__SESSION_TTL_SECONDS": "5",
    "AIRFLOW__PENSTOCK__RELEASE_WHILE_DEFERRED": "narrow,released,live_deferral_released",
    "AIRFLOW__PENSTOCK__WAITING_BY_POOL": "*_block=block,*_reschedule=reschedule",
    "AIRFLOW__CORE__PARALLELISM": "20",
    # A process that is gone is noticed within half a minute, not five; one that hardly runs on a busy machine is not
    # taken for one that is gone.
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "5",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "2",
}

RECIPES = DAGS.parents[2] / "airflow_provider" / "recipes"
_LOCAL = "airflow.dag_processing.bundles.local.LocalDagBundle"
_BUNDLES = [
    {"name": "dags-folder", "classpath": _LOCAL, "kwargs": {}},
    {"name": "recipes", "classpath": _LOCAL, "kwargs": {"path": str(RECIPES)}},
]
WITH_RECIPES = {
    "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(_BUNDLES),
    "PYTHONPATH": str(DAGS.parents[1] / "at_work"),
}
"""For an Airflow that has the DAGs of the recipes, too."""

CELERY = {}
if broker := os.environ.get("PENSTOCK_TEST_CELERY_BROKER_URL"):
    CELERY = {
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
        "AIRFLOW__CELERY__BROKER_URL": broker,
        "AIRFLOW__CELERY__WORKER_CONCURRENCY": SETTINGS["AIRFLOW__CORE__PARALLELISM"],
        "AIRFLOW__OPERATORS__DEFAULT_QUEUE": f"penstock-tests-{os.getpid()}",  # nothing that others have left there
    }


def limits_are(engine: Engine, document: Mapping[str, Any]) -> None:
    """Put a configuration in force."""
    version, _ = engine.configuration(fresh=True)
    changes.apply(engine, Concurrency.from_document(document), expected_version=version)
