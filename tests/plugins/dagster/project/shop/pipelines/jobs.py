"""Jobs, with what holds for their runs."""

import dagster as dg

from ..ops import each_one, fan_out, fetch, load, outer, query, send
from .executors import four, from_environment, tagged, two

LIMITS = {"execution": {"config": {"multiprocess": {"max_concurrent": 5}}}}


@dg.job
def unsaid():
    load(fetch())


@dg.job(name="named_job", executor_def=four, tags={"team": "ml", "dagster/priority": "2"})
def job_with_executor():
    send(query())


@dg.job(config=LIMITS, tags={"dagster/concurrency_key": "not_for_runs"})
def by_run_config():
    fetch()


@dg.job(
    config=dg.RunConfig(
        execution={
            "config": {"multiprocess": {"max_concurrent": 6, "tag_concurrency_limits": [{"key": "tier", "limit": 1}]}}
        }
    )
)
def by_run_config_object():
    fetch()


@dg.job(
    executor_def=dg.multiprocess_executor,
    config={"execution": {"config": {"max_concurrent": 8}}},
    run_tags={"a": "b"},
    tags={"c": "d"},
)
def by_flat_run_config():
    fetch()


@dg.job(config={"execution": {"config": {"in_process": {}}}})
def one_process_by_config():
    fetch()


@dg.job(executor_def=dg.in_process_executor)
def one_process():
    fetch()


@dg.job(executor_def=from_environment)
def by_environment():
    fetch()


@dg.job(executor_def=tagged)
def with_invocations():
    fetch.tag({"dagster/concurrency_key": "tagged_here"}).alias("fetched")()
    query.alias("asked")()
    query.tag({"dagster/concurrency_key": "of_no_use", "database": "warehouse"})()
    fan_out().map(each_one)


graph_job = outer.to_job(name="graph_job", executor_def=two, tags={"team": "graphs"})
unnamed_graph_job = outer.to_job()
all_assets = dg.define_asset_job("all_assets", selection="*", tags={"kind": "nightly"}, executor_def=tagged)
heavy_assets = dg.define_asset_job(
    name="heavy_assets", selection=["heavy"], config={"execution": {"config": {"multiprocess": {"max_concurrent": 9}}}}
)
