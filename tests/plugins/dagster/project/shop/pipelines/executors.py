"""Executors under names."""

import os

import dagster as dg
from dagster import multiprocess_executor

FOUR = 2 * 2
four = multiprocess_executor.configured({"max_concurrent": FOUR})
tagged = multiprocess_executor.configured(
    {
        "max_concurrent": 3,
        "tag_concurrency_limits": [
            {"key": "database", "value": "warehouse", "limit": 1},
            {"key": "database", "limit": 2},
            {"key": "team", "value": {"applyLimitPerUniqueValue": True}, "limit": 1},
        ],
    },
    name="tagged_executor",
)
from_environment = multiprocess_executor.configured({"max_concurrent": int(os.getenv("SHOP_PARALLEL", "7"))})
two = dg.configured(dg.multiprocess_executor, name="two")({"max_concurrent": 2})
