"""A run is skipped while another one of the flow is going on."""

from penstock_prefect import limited
from prefect import flow, task
from work import work


@task
def first_asset():
    work("my_job")


@limited("my_job", on_blocked="skip")
@flow
def only_one():
    first_asset()


if __name__ == "__main__":
    only_one()
