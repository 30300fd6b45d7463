"""At most one run at a time that has tasks of the warehouse, from its first task to its end."""

from airflow.sdk import dag, task
from penstock_airflow import limited
from work import work


@dag(schedule=None)
def pool_of_runs():
    @limited("warehouse")
    @task
    def load():
        work("warehouse")

    @limited("warehouse")
    @task
    def publish():
        work("warehouse")

    load() >> publish()


pool_of_runs()
