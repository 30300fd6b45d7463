"""Names that mean something elsewhere, of a run, its tags, tasks and pools: `python hostile_names.py hostile …`."""

import sys
from pathlib import Path

from penstock_prefect import limited
from prefect import flow, tags, task

sys.path.insert(0, str(Path(__file__).parents[2]))
from hostile import SHORT, usable


@limited
@flow
def hostile(texts: list[str]) -> None:
    for future in [named(text).submit(text) for text in texts]:
        assert future.result() in texts


def named(name: str):
    @limited(usable(name))
    @task(name=name, task_run_name=lambda: name, tags=[name])
    def step(text: str) -> str:
        return text

    return step


if __name__ == "__main__":
    with tags(*SHORT.values()):
        hostile.with_options(flow_run_name=lambda: "".join(SHORT.values()))(list(SHORT.values()))
