"""The soak's DAG: a mapped task that waits deferred, one that waits in its worker, one with several pools."""

import time
from datetime import timedelta

from airflow.sdk import DAG, get_current_context, task
from holding import holding, run_slots
from penstock_airflow import limited


def work(slots: dict[str, int], seconds: float) -> None:
    context = get_current_context()
    instance, customer = context["ti"], context["params"]["customer"]
    op = instance.task_id if instance.map_index < 0 else f"{instance.task_id}[{instance.map_index}]"
    with holding("airflow", op, instance.run_id, slots, run_slots(customer)):
        time.sleep(seconds)


with DAG(
    "airflow_orders",
    schedule=None,
    params={"customer": ""},
    default_args={"retries": 20, "retry_delay": timedelta(seconds=1)},
):

    @task(pool="warehouse")
    def extract(part: int) -> int:
        work({"pool:warehouse": 1}, 4.0)
        return part

    @task(pool="licence")  # waits in its worker: `waiting_by_pool`
    def convert() -> None:
        work({"pool:licence": 1}, 2.0)

    @limited("warehouse:2", "api")
    @task
    def publish() -> None:
        work({"pool:warehouse": 2, "pool:api": 1}, 2.0)

    extract.expand(part=[1, 2]) >> publish()
    convert()
