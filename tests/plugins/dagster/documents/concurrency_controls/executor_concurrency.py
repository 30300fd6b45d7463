"""Solution 2: executor concurrency, within a run."""

import dagster as dg


@dg.asset
def first() -> None: ...


@dg.asset
def second() -> None: ...


@dg.asset
def third() -> None: ...


all_of_them = dg.define_asset_job(
    "all_of_them",
    selection="*",
    executor_def=dg.multiprocess_executor.configured({"max_concurrent": 2}),
)

defs = dg.Definitions(
    assets=[first, second, third],
    jobs=[all_of_them],
    executor=dg.multiprocess_executor.configured({"max_concurrent": 4}),
)
