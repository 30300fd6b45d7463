"""The code location."""

import dagster as dg

from . import assets, made, ops
from .pipelines import jobs, starting
from .pipelines.executors import tagged

defs = dg.Definitions(
    assets=dg.load_assets_from_modules([assets, ops, made]),
    asset_checks=dg.load_asset_checks_from_modules([assets]),
    jobs=[
        jobs.unsaid,
        jobs.job_with_executor,
        jobs.by_run_config_object,
        jobs.graph_job,
        jobs.all_assets,
        jobs.heavy_assets,
        jobs.with_invocations,
    ],
    schedules=[starting.nightly],
    executor=tagged,
)
