"""Tags of ops, assets and runs, as Dagster keeps them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from penstock_plugins.dagster.code_report import Unknown
from penstock_plugins.dagster.code_scopes import NotStatic

CONCURRENCY_KEY = "dagster/concurrency_key"
PRIORITY = "dagster/priority"


@dataclass(frozen=True, slots=True)
class Tags:
    """Tags as Dagster keeps them, all texts, and the keys whose values only the running code knows."""

    known: dict[str, str]
    unknown: dict[str, str]


def tags_of(value: Any) -> Tags:
    """Raises NotStatic for what are no tags."""
    if value is None:
        return Tags({}, {})
    if not isinstance(value, dict):
        raise NotStatic("it is no dict")
    tags = Tags({}, {})
    for key, each in value.items():
        if isinstance(each, Unknown):
            tags.unknown[str(key)] = each.why
        else:
            try:
                tags.known[str(key)] = each if isinstance(each, str) else json.dumps(each)
            except TypeError:
                tags.unknown[str(key)] = "it holds what only the running code knows"
    return tags


def priority_of(tags: dict[str, str]) -> int:
    """The priority that tags say, 0 without one."""
    try:
        return int(tags.get(PRIORITY, 0))
    except ValueError:
        return 0  # as Dagster does
