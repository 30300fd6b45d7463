"""At most one task of a run at the warehouse; its other tasks go on beside it."""

from airflow.sdk import dag, task
from penstock_airflow import limited
from work import work


@limited(max_concurrent=4, tag_concurrency_limits=[{"key": "database", "value": "warehouse", "limit": 1}])
@dag(schedule=None)
def op_tags():
    @limited(tags={"database": "{{ database }}"})
    @task
    def read(database):
        work(database)

    read.expand(database=["warehouse", "warehouse", "lake", "lake"])


op_tags()
