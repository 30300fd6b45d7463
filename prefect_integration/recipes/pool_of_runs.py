"""At most one run at a time that has tasks of the warehouse, from its start to its end."""

from penstock_prefect import limited
from prefect import flow, task
from work import work


@task
def load():
    work("warehouse")


@task
def publish():
    work("warehouse")


@limited("warehouse")  # of the flow: known before its first task
@flow
def pool_of_runs():
    load()
    publish()


if __name__ == "__main__":
    pool_of_runs()
