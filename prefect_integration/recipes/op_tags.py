"""At most one task of a run at the warehouse; its other tasks go on beside it."""

from penstock_prefect import limited
from prefect import flow, task
from work import work


@limited
@task
def read(database):
    work(database)


@limited(max_concurrent=4, tag_concurrency_limits=[{"key": "database", "value": "warehouse", "limit": 1}])
@flow
def op_tags():
    databases = ["warehouse", "warehouse", "lake", "lake"]
    futures = [read.with_options(tags=[f"database:{name}"]).submit(name) for name in databases]
    for future in futures:
        future.result()


if __name__ == "__main__":
    op_tags()
