"""Limits of three kinds bound the same tasks: none is ever passed."""

from airflow.sdk import dag, task
from penstock_airflow import limited
from work import work


@dag(schedule=None)
def combined():
    @task
    def parts():
        return [1, 2, 3]

    @limited("reports")
    @task
    def report(part):
        work("report")

    report.expand(part=parts())


combined()
