"""Runs that carry tags: `airflow dags trigger run_queue --conf '{"backfill": "2024"}'`."""

from airflow.sdk import dag, task
from work import work


@dag(schedule=None)
def run_queue():
    @task
    def load(dag_run=None):
        work(" ".join(f"{key}:{value}" for key, value in dag_run.conf.items()) or "nightly")

    load()


run_queue()
