"""At most two tasks of a run at once; other runs go on beside it."""

from airflow.sdk import dag, task
from penstock_airflow import limited
from work import work


@limited(max_concurrent=2)
@dag(schedule=None)
def within_run():
    @task
    def transform(part):
        work("transform")

    transform.expand(part=[1, 2, 3])


within_run()
