"""The line of a DAG or flow that says the same as a row of the report."""

from __future__ import annotations

import json
from collections.abc import Mapping

from penstock.claim import CAPACITY_MAX, check_pool_name
from penstock.errors import ClaimError

from penstock_plugins.dagster.code_report import Definition, Runs
from penstock_plugins.dagster.code_tags import PRIORITY

_OF_DAGSTER = "dagster"
JOBS = frozenset({"job", "asset job"})


def unusable(pool: str) -> str | None:
    """Why no pool of Penstock can have this name; None if one can."""
    try:
        check_pool_name(pool)
    except ClaimError as error:
        return str(error)
    return None


def of_definition(row: Definition, counting: frozenset[str]) -> tuple[str | None, str | None]:
    """For Airflow and for Prefect; `counting` are the op tags that a rule looks at. None: nothing is to be said."""
    if any(unusable(pool) for pool in row.pools) or row.kind.startswith("graph"):  # a graph's pools are its ops'
        return None, None
    arguments = [_text(pool if row.slots == 1 else f"{pool}:{row.slots}") for pool in row.pools]
    tags = {key: value for key, value in row.op_tags.items() if key in counting}
    if not arguments and not tags:
        return None, None
    priority = [f"priority={row.priority}"] if row.priority else []
    airflow = _limited([*arguments, *_tags(tags), *priority])
    on_task = f" @task(tags={_tag_list(tags)})" if tags else ""
    prefect = (_limited([*arguments, *priority]) if arguments else "@limited") + (on_task or " @task")
    return airflow, None if any(":" in key for key in tags) else prefect


def of_runs(row: Runs, of_all: Runs | None = None) -> tuple[str | None, str | None]:
    """For Airflow and for Prefect. A code location's is the file's, whatever the host; `of_all` is in it."""
    bounds = _bounds(row)
    if of_all is not None and of_all.bound == "set" and row.kind in JOBS and not row.inherited:
        bounds = _instead(row, of_all) | bounds
    tags = {key: value for key, value in row.run_tags.items() if not key.startswith(_OF_DAGSTER)}
    priority = row.run_tags.get(PRIORITY, "0")
    arguments = [f"{name}={value}" for name, value in bounds.items()]
    if row.kind == "code location":
        within = ", ".join(f"{name}: {value}" for name, value in bounds.items() if "os." not in value)
        block = f"ops: {{{within}}}" if within else None
        return block, block
    if row.kind == "run request":
        own = ", ".join(f"{_text(name)}: {value}" for name, value in bounds.items())
        conf = {key: _text(value) for key, value in tags.items()} | ({"penstock": f"{{{own}}}"} if own else {})
        shown = ", ".join(f"{_text(key)}: {value}" for key, value in conf.items())
        return (f"conf={{{shown}}}" if conf else None), (f"run_deployment(tags={_tag_list(tags)})" if tags else None)
    if priority.lstrip("-").isdigit() and int(priority):
        arguments.append(f"priority={int(priority)}")
    deployed = f" deploy(tags={_tag_list(tags)})" if tags else ""
    airflow = _limited([*arguments, *_tags(tags)]) if arguments or tags else None
    prefect = (_limited(arguments) if arguments else "") + deployed
    return airflow, prefect.strip() or None


def _bounds(row: Runs) -> dict[str, str]:
    bounds: dict[str, str] = {}
    if row.inherited:
        return bounds
    if row.bound == "set":
        bounds["max_concurrent"] = str(row.max_concurrent)
    elif row.bound == "cpu_count" and row.kind != "run request":
        bounds["max_concurrent"] = "os.cpu_count()"
    if row.tag_concurrency_limits:
        rules = ", ".join(json.dumps(rule, ensure_ascii=False) for rule in row.tag_concurrency_limits)
        in_python = (
            rules if row.kind == "code location" else rules.replace(": true", ": True").replace(": false", ": False")
        )
        bounds["tag_concurrency_limits"] = f"[{in_python}]"
    return bounds


def _instead(row: Runs, of_all: Runs) -> dict[str, str]:
    """What takes a job from under the file's `ops` block, where its own executor says nothing of the kind."""
    lifted = {"max_concurrent": str(CAPACITY_MAX)} if row.bound == "unlimited" else {}
    return lifted | (
        {"tag_concurrency_limits": "[]"} if of_all.tag_concurrency_limits and row.bound != "unread" else {}
    )


def _limited(arguments: list[str]) -> str:
    return f"@limited({', '.join(arguments)})"


def _tags(tags: Mapping[str, str]) -> list[str]:
    return [f"tags={{{', '.join(f'{_text(key)}: {_text(value)}' for key, value in tags.items())}}}"] if tags else []


def _tag_list(tags: Mapping[str, str]) -> str:
    return "[" + ", ".join(_text(f"{key}:{value}" if value else key) for key, value in tags.items()) + "]"


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
