"""At most two tasks of a run at once; other runs go on beside it."""

from penstock_prefect import limited
from prefect import flow, task
from work import work


@limited
@task
def transform(part):
    work("transform")


@limited(max_concurrent=2)
@flow
def within_run():
    for future in transform.map([1, 2, 3]):
        future.result()


if __name__ == "__main__":
    within_run()
