"""Tasks of all runs, of all DAGs, share pools."""

from airflow.sdk import dag, task
from penstock_airflow import limited
from work import work


@dag(schedule=None)
def pools():
    @task(pool="database")  # Airflow's own word is enough
    def query(table):
        work("database")

    @limited("api")  # no limit of its own: the default limit counts
    @task
    def call(partner):
        work("api")

    query.expand(table=["orders", "customers"])
    call("rates")


pools()
