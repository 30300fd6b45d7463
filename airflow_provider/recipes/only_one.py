"""A run is skipped while another one of the DAG is going on."""

from airflow.sdk import dag, task
from penstock_airflow import limited
from work import work


@limited("my_job", on_blocked="skip")
@dag(schedule=None)
def only_one():
    @task
    def first_asset():
        work("my_job")

    first_asset()


only_one()
