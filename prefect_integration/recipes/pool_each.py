"""Each task has a pool of its own, by the setting `pool_per_op`; those that are left out are unlimited."""

from penstock_prefect import limit_all
from prefect import flow, task
from work import work


@task
def orders():
    work("orders")


@task
def customers():
    work("customers")


@task
def unlimited():
    work("unlimited")


@flow
def pool_each():
    for future in [orders.submit(), customers.submit(), unlimited.submit()]:
        future.result()


limit_all([orders, customers])  # `limit_all(pool_each)`: each task that the flow names

if __name__ == "__main__":
    pool_each()
