"""Tasks of all runs, of all flows, share pools."""

from penstock_prefect import limited
from prefect import flow, task
from work import work


@limited("database")
@task
def query(table):
    work("database")


@limited("api")  # no limit of its own: the default limit counts
@task
def call(partner):
    work("api")


@flow
def pools():
    futures = [*query.map(["orders", "customers"]), call.submit("rates")]
    for future in futures:
        future.result()


if __name__ == "__main__":
    pools()
