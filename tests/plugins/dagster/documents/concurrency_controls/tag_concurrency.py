"""Solution 3: tag-based concurrency, within a run."""

import dagster as dg


@dg.asset(op_tags={"database": "warehouse"})
def read_one() -> None: ...


@dg.asset(op_tags={"database": "warehouse"})
def read_other() -> None: ...


@dg.asset(op_tags={"database": "lake"})
def read_lake() -> None: ...


@dg.asset(op_tags={"api": "rates"})
def call_api() -> None: ...


tagged = dg.define_asset_job(
    "tagged",
    selection="*",
    executor_def=dg.multiprocess_executor.configured(
        {
            "max_concurrent": 4,
            "tag_concurrency_limits": [
                {"key": "database", "value": "warehouse", "limit": 1},
                {"key": "api", "limit": 2},
            ],
        }
    ),
)

defs = dg.Definitions(assets=[read_one, read_other, read_lake, call_api], jobs=[tagged])
