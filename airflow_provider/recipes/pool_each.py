"""Each task has a pool of its own, by the setting `pool_per_op`; those that are left out are unlimited."""

from airflow.sdk import dag, task
from penstock_airflow import limited
from work import work


@dag(schedule=None)
def pool_each():
    @task
    def orders():
        work("orders")

    @task
    def customers():
        work("customers")

    @limited(exempt=True)
    @task
    def unlimited():
        work("unlimited")

    orders(), customers(), unlimited()


pool_each()
