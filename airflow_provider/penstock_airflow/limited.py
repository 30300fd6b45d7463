"""`limited`: what a DAG's author says of tasks, task groups and DAGs; and what the gate reads of it, templates rendered.

What was said stands on the objects of the DAG file. Every task process parses that file again, so it is there without
being serialized, and a change of it is no new version of the DAG.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from penstock.settings import OnBlocked


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What was said of one task, templates rendered, what its task groups say merged in.

    `priority` None: Airflow's priority_weight counts. `wait_timeout_seconds` None waits for ever. `exempt`: the task is
    not limited at all.
    """

    pools: Mapping[str, int] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    priority: int | None = None
    on_blocked: OnBlocked = "wait"
    wait_timeout_seconds: float | None = None
    exempt: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits:
    """What was said of a DAG and in its run's `conf["penstock"]`, templates rendered. `within`: limits on the run's ops,
    in the form of the configuration's `ops` block.
    """

    pools: Mapping[str, int] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    priority: int | None = None
    on_blocked: OnBlocked = "wait"
    wait_timeout_seconds: float | None = None
    within: Mapping[str, Any] | None = None


def of_task(context: Mapping[str, Any]) -> Limits:
    """What was said of the task of this context. Raises ClaimError where a template gives something unusable."""
    return Limits()


def of_run(context: Mapping[str, Any]) -> RunLimits:
    """What was said of the run of this context. Raises ClaimError where a template or the conf says something unusable."""
    return RunLimits()
