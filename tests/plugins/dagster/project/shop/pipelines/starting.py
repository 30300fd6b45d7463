"""Schedules, sensors and their run requests."""

import dagster as dg

from .jobs import all_assets, by_run_config, unsaid

nightly = dg.ScheduleDefinition(name="nightly", job=all_assets, cron_schedule="0 1 * * *", tags={"when": "night"})
unnamed = dg.ScheduleDefinition(
    job=unsaid,
    cron_schedule="0 2 * * *",
    run_config={"execution": {"config": {"multiprocess": {"max_concurrent": 1}}}},
)


@dg.schedule(job=unsaid, cron_schedule="0 3 * * *", tags={"annotates": "only"})
def requesting(context):
    return dg.RunRequest(tags={"batch": "three", "at": str(context.scheduled_execution_time)})


@dg.schedule(job=unsaid, cron_schedule="0 4 * * *", tags={"of": "runs"})
def configuring():
    return {}


@dg.sensor(job=by_run_config, tags={"of": "the sensor"})
def watching(context):
    yield dg.RunRequest(
        run_key="one",
        tags={"source": "s3"},
        run_config={"execution": {"config": {"multiprocess": {"max_concurrent": 2}}}},
    )
