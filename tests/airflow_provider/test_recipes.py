"""Every recipe of core/docs/recipes.md as DAGs on a real Airflow: what each says is never exceeded, and reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from penstock.demo.airflow_host import AirflowHost
from penstock.engine import Engine
from recipes import (
    COMBINED,
    FROM_DAGSTER,
    ONLY_ONE,
    RUN_TOTAL,
    SIDE_BY_SIDE,
    Recipe,
    Tags,
    Workshop,
    check,
    go_the_way_from_dagster,
    ops_on_the_page,
    ops_shown,
    run_together,
)

pytestmark = [
    pytest.mark.parametrize("store_url", ["sqlite"], indirect=True, scope="session"),
    pytest.mark.timeout(600),
]


@pytest.fixture
def workshop(started_host: AirflowHost, engine: Engine, store_url: str, intervals_folder: Path) -> Iterator[Workshop]:
    workshop = Workshop(intervals_folder, engine, store_url)
    yield workshop
    workshop.forget()


def run(
    host: AirflowHost,
    workshop: Workshop,
    recipes: Sequence[Recipe],
    when_full: Callable[[Recipe], None] = lambda _: None,
) -> None:
    """Run these side by side to their ends, and check what each says."""

    def start(recipe: Recipe, number: int, tags: Tags) -> None:
        host.trigger(recipe.script, f"{recipe.name}_{number}", tags)

    def wait_for(what: str, condition: Callable[[], bool]) -> None:
        host.processes.wait_for(what, condition, seconds=240)

    try:
        run_together(workshop, recipes, start, wait_for, when_full)
        for recipe in recipes:
            runs = [f"{recipe.name}_{number}" for number in range(len(recipe.runs))]
            host.wait_for_runs(recipe.script, runs, seconds=240)
    except Exception:
        print(host.logs())
        raise
    wait_for("every slot is back", workshop.nothing_left)
    for recipe in recipes:
        check(recipe, workshop.notes(recipe.script))


def test_recipes_side_by_side(started_host: AirflowHost, workshop: Workshop) -> None:
    workshop.configure(*SIDE_BY_SIDE)
    run(started_host, workshop, SIDE_BY_SIDE)
    assert ops_shown(workshop, "airflow", "tests") == ops_on_the_page("airflow")


def test_the_run_total_and_what_those_who_wait_look_like(started_host: AirflowHost, workshop: Workshop) -> None:
    """A DAG run that waits is not queued: it is running, and its task is deferred."""

    def runs_are_running_and_tasks_deferred(recipe: Recipe) -> None:
        def so_it_is() -> bool:
            runs = [run_id for run_id in started_host.run_states("run_queue") if run_id.startswith(recipe.name)]
            states = [task["state"] for run_id in runs for task in started_host.task_instances("run_queue", run_id)]
            running = {started_host.run_states("run_queue")[run_id] for run_id in runs} == {"running"}
            return running and sorted(states) == ["deferred", "deferred", "running", "running"]

        started_host.processes.wait_for("runs are running, tasks deferred", so_it_is, seconds=60)

    workshop.configure(RUN_TOTAL)
    run(started_host, workshop, [RUN_TOTAL], when_full=runs_are_running_and_tasks_deferred)


def test_limits_of_three_kinds_combined(started_host: AirflowHost, workshop: Workshop) -> None:
    workshop.configure(COMBINED)
    run(started_host, workshop, [COMBINED])


def test_the_steps_from_dagster_bring_its_limits(
    started_host: AirflowHost, workshop: Workshop, store_url: str, tmp_path: Path
) -> None:
    go_the_way_from_dagster(tmp_path, store_url)
    run(started_host, workshop, FROM_DAGSTER)


def test_a_run_is_skipped_while_another_goes_on(started_host: AirflowHost, workshop: Workshop) -> None:
    workshop.put_in_force("only_one")
    workshop.hold(ONLY_ONE)
    started_host.trigger(ONLY_ONE, "first")
    started_host.processes.wait_for("it is at work", lambda: workshop.is_at_work(ONLY_ONE), seconds=60)
    started_host.trigger(ONLY_ONE, "second")
    started_host.wait_for_runs(ONLY_ONE, ["second"], seconds=60)
    assert workshop.is_at_work(ONLY_ONE), "they overlapped"
    (task,) = started_host.task_instances(ONLY_ONE, "second")
    assert task["state"] == "skipped"
    assert "my_job: 1 of 1 held by airflow/tests only_one/first" in started_host.task_log(
        ONLY_ONE, "second", "first_asset"
    )
    workshop.let_go(ONLY_ONE)
    started_host.wait_for_runs(ONLY_ONE, ["first"], seconds=60)
    assert [note.run for note in workshop.notes(ONLY_ONE)] == ["first"]
    # Of two runs of a file that end together Airflow calls one's callbacks with the file's next parse, 60 s later here.
    started_host.processes.wait_for("every slot is back", workshop.nothing_left, seconds=150)
