"""What the tests of the provider take from Airflow, wherever its version keeps it. Airflow loads at the first call."""

from __future__ import annotations

import importlib
from typing import Any


def _first(*places: str) -> Any:
    """What is found at the first of these places, `module:name`, that there is."""
    for place in places:
        module, _, name = place.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
    raise ImportError(f"this Airflow has none of {', '.join(places)}")


def exception(name: str) -> Any:
    """One of the exceptions by which a task ends, such as `TaskDeferred`."""
    return _first(f"airflow.sdk.exceptions:{name}", f"airflow.exceptions:{name}")


def serialized_arguments(arguments: Any) -> Any:
    """`next_kwargs` as the task runner of this version receives them."""
    found = _first("airflow.sdk.serde:serialize", "airflow.serialization.serialized_objects:BaseSerialization")
    return getattr(found, "serialize", found)(arguments)


def serialized_dag(dag: Any) -> Any:
    """The DAG as it is stored."""
    module = "airflow.serialization.serialized_objects"
    return _first(f"{module}:DagSerialization", f"{module}:SerializedDAG").to_dict(dag)


def triggers_are_told_of_kills() -> bool:
    """Whether a trigger hears that a user has ended its task: from 3.3 on."""
    return hasattr(_first("airflow.triggers.base:BaseTrigger"), "on_kill")


def policy_manager() -> Any:
    """Airflow's plugin manager of cluster policies."""
    from airflow import settings

    return (
        settings.get_policy_plugin_manager()
        if hasattr(settings, "get_policy_plugin_manager")
        else settings.POLICY_PLUGIN_MANAGER
    )
