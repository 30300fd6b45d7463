"""The tags that the hosts set by themselves, and the rules that no host can match by them. Pure data and functions."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

from penstock.config import Concurrency, TagLimit

DAGSTER_TAGS = "dagster/"
"""Tags that only Dagster sets."""

RUN_TAGS: Mapping[str, frozenset[str] | None] = {
    "airflow/dag_id": None,
    "airflow/run_type": frozenset(
        {"asset_materialization", "asset_triggered", "backfill", "manual", "operator_triggered", "scheduled"}
    ),
    "airflow/triggering_user": None,
    "airflow/backfill_id": None,
    "prefect/flow": None,
    "prefect/deployment": None,
    "prefect/work_pool": None,
    "prefect/schedule": frozenset({"true"}),
}
"""Of runs: tag → the values that it can have (None: any). Beside them are those that people set."""

OP_TAGS: Mapping[str, frozenset[str] | None] = {
    "airflow/dag_id": None,
    "airflow/task_id": None,
    "airflow/task_group": None,
    "airflow/owner": None,
    "airflow/operator": None,
    "airflow/queue": None,
    "prefect/task": None,
}
"""The same of ops."""

HOSTS = ("airflow/", "prefect/", DAGSTER_TAGS)


def unmatched_rules(concurrency: Concurrency) -> Iterator[tuple[str, int, str, str]]:
    """The rules that match nothing but what people tag so by hand: (block, index, tag key, why)."""
    for block, rules, tags in (
        ("runs", concurrency.runs.tag_concurrency_limits, RUN_TAGS),
        ("ops", concurrency.ops.tag_concurrency_limits, OP_TAGS),
    ):
        for index, rule in enumerate(rules):
            if (why := _unmatched(block, rule, tags)) is not None:
                yield block, index, rule.key, why


def _unmatched(block: str, rule: TagLimit, tags: Mapping[str, frozenset[str] | None]) -> str | None:
    if not rule.key.startswith(HOSTS):
        return None  # anybody's own
    if rule.key not in tags:
        return f"no host sets this tag by itself, so the rule matches only those that you tag{_hint(block, rule.key)}"
    values = tags[rule.key]
    if values is not None and isinstance(rule.value, str) and rule.value not in values:
        return f"never has the value {rule.value!r}; it can be {', '.join(sorted(values))}"
    return None


def _hint(block: str, key: str) -> str:
    here, there, others = (RUN_TAGS, OP_TAGS, "ops") if block == "runs" else (OP_TAGS, RUN_TAGS, "runs")
    if key in there:
        return f"; it is a tag of {others}"
    nearest = difflib.get_close_matches(key, here, n=1, cutoff=0.8)
    return f"; did you mean {nearest[0]}?" if nearest else ""
