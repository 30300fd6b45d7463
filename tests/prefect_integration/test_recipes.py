"""Every recipe of core/docs/recipes.md as flows on a real server: what each says is never exceeded, and reached."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import penstock
import pytest
from penstock.demo.prefect_host import PrefectHost
from prefect_runs import succeed
from recipes import (
    ALL,
    AT_WORK,
    FROM_DAGSTER,
    ONLY_ONE,
    ROOT,
    RUN_TOTAL,
    Recipe,
    Tags,
    Workshop,
    check,
    go_the_way_from_dagster,
    ops_on_the_page,
    ops_shown,
    run_together,
)

FLOWS = ROOT / "prefect_integration" / "recipes"
pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def workshop(host: PrefectHost, tmp_path: Path) -> Iterator[Workshop]:
    with penstock.connect(host.store_url) as engine:
        yield Workshop(tmp_path, engine, host.store_url or "")


def start(host: PrefectHost, workshop: Workshop, script: str, name: str, *tags: str) -> subprocess.Popen[bytes]:
    settings = {
        "PYTHONPATH": str(AT_WORK),
        "INTERVALS_FOLDER": str(workshop.folder),
        "RECIPE": script,
        "PREFECT_INTEGRATIONS_PENSTOCK_SESSION_TTL_SECONDS": "30",  # nobody is killed here, and many start at once
    }
    if script == "pool_each":
        settings["PREFECT_INTEGRATIONS_PENSTOCK_POOL_PER_OP"] = "*"
    return host.run_flow(name, FLOWS / f"{script}.py", *tags, settings=settings)


def run(
    host: PrefectHost,
    workshop: Workshop,
    recipes: Sequence[Recipe],
    when_full: Callable[[Recipe], None] = lambda _: None,
) -> None:
    """Run these side by side to their ends, and check what each says."""
    children: list[subprocess.Popen[bytes]] = []

    def start_one(recipe: Recipe, number: int, tags: Tags) -> None:
        given = [f"{key}:{value}" for key, value in tags.items()]
        children.append(start(host, workshop, recipe.script, f"{recipe.name}-{number}", *given))

    def wait_for(what: str, condition: Callable[[], bool]) -> None:
        def failed() -> bool:
            return any(child.poll() for child in children)

        host.wait_for(what, lambda: failed() or condition(), seconds=180)
        assert not failed(), host.logs()

    try:
        run_together(workshop, recipes, start_one, wait_for, when_full)
        succeed(host, *children, seconds=180)
    finally:
        for child in children:
            child.kill()  # those of a test that fails hold what others need
    assert workshop.nothing_left(), (workshop.engine.status(), host.logs())
    for recipe in recipes:
        check(recipe, workshop.notes(recipe.script))


@pytest.mark.parametrize("recipe", [one for one in ALL if one is not RUN_TOTAL], ids=lambda recipe: recipe.name)
def test_never_more_together_than_the_recipe_says(host: PrefectHost, workshop: Workshop, recipe: Recipe) -> None:
    workshop.configure(recipe)
    run(host, workshop, [recipe])
    if recipe.name == "pool_each":
        assert ops_shown(workshop, "prefect", "prefect-test") == ops_on_the_page("prefect")


def test_the_run_total_and_what_those_who_wait_look_like(host: PrefectHost, workshop: Workshop) -> None:
    """A flow run that waits in its process is Running; what it waits for is in its log."""
    known = {flow_run["id"] for flow_run in host.flow_runs()}

    def runs_are_running_and_say_what_they_wait_for(recipe: Recipe) -> None:
        assert recipe.name == "run_total"

        def so_it_is() -> bool:
            runs = [flow_run for flow_run in host.flow_runs() if flow_run["id"] not in known]
            waits = [
                line for one in runs for line in host.run_logs(one["id"]) if line.startswith("Waiting for slots: ")
            ]
            return [one["state_name"] for one in runs] == ["Running"] * 4 and len(waits) >= 2

        host.wait_for("runs are running and say what they wait for", so_it_is, seconds=60)

    workshop.configure(RUN_TOTAL)
    run(host, workshop, [RUN_TOTAL], when_full=runs_are_running_and_say_what_they_wait_for)


def test_the_steps_from_dagster_bring_its_limits(host: PrefectHost, workshop: Workshop, tmp_path: Path) -> None:
    assert host.store_url is not None
    go_the_way_from_dagster(tmp_path, host.store_url)
    run(host, workshop, FROM_DAGSTER)


def test_a_run_is_skipped_while_another_goes_on(host: PrefectHost, workshop: Workshop) -> None:
    workshop.put_in_force("only_one")
    workshop.hold(ONLY_ONE)
    known = {flow_run["id"] for flow_run in host.flow_runs()}
    first = start(host, workshop, ONLY_ONE, "first")
    host.wait_for("it is at work", lambda: workshop.is_at_work(ONLY_ONE), seconds=60)
    succeed(host, start(host, workshop, ONLY_ONE, "second"))
    assert workshop.is_at_work(ONLY_ONE), "they overlapped"
    skipped = [run["state"] for run in host.flow_runs() if run["id"] not in known and run["state_name"] == "Skipped"]
    assert [state["type"] for state in skipped] == ["COMPLETED"]
    assert skipped[0]["message"].startswith("my_job: 1 of 1 held by prefect/prefect-test only-one/")
    workshop.let_go(ONLY_ONE)
    succeed(host, first)
    assert len(workshop.notes(ONLY_ONE)) == 1
    assert workshop.nothing_left()
