"""What a test asks of a Prefect server beside what the demo's host does."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping
from typing import Any

from penstock.demo.prefect_host import PrefectHost


def ask(host: PrefectHost, path: str, body: Mapping[str, Any] | None = None) -> Any:
    """The answer to a POST of a body, or to a GET without one. Raises urllib's errors."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(host.api_url + path, data, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30.0) as answer:
        return json.load(answer)


def events(host: PrefectHost, run: str, prefix: str) -> list[dict[str, Any]]:
    """The events whose names begin so and in which `run` (`flow-run.ID`, `task-run.ID`) is involved, oldest first."""
    wanted = {"any_resource": {"id": [f"prefect.{run}"]}, "event": {"prefix": [prefix]}, "order": "ASC"}
    found: list[dict[str, Any]] = ask(host, "/events/filter", {"filter": wanted, "limit": 50})["events"]
    return found


def artifacts(host: PrefectHost, flow_run_id: str) -> list[dict[str, Any]]:
    """The artifacts of a flow run."""
    wanted = {"flow_runs": {"id": {"any_": [flow_run_id]}}}
    found: list[dict[str, Any]] = ask(host, "/artifacts/filter", wanted)
    return found


def states(host: PrefectHost, task_run_id: str) -> list[str]:
    """The names of the states that a task run has been in, one after the other."""
    found = ask(host, f"/task_run_states/?task_run_id={task_run_id}")
    return [state["name"] for state in sorted(found, key=lambda state: state["timestamp"])]
