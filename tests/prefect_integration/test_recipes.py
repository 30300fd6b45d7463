"""Every recipe of core/docs/recipes.md as flows on a real server: what each says is never exceeded, and reached."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import penstock
import pytest
from penstock.demo.prefect_host import PrefectHost
from prefect_runs import succeed
from recipes import AT_WORK, NAMED, ROOT, Recipe, Tags, Workshop, check, run_together

FLOWS = ROOT / "prefect_integration" / "recipes"
SIDE_BY_SIDE = ["pools", "pool_of_runs", "within_run", "op_tags", "run_tags", "pool_each"]
"""Those whose configurations can be one; the limits of the others are those of everything that runs."""


@pytest.fixture
def workshop(host: PrefectHost, tmp_path: Path) -> Iterator[Workshop]:
    with penstock.connect(host.store_url) as engine:
        yield Workshop(tmp_path, engine)


def start(host: PrefectHost, workshop: Workshop, script: str, name: str, *tags: str) -> subprocess.Popen[bytes]:
    settings = {
        "PYTHONPATH": str(AT_WORK),
        "INTERVALS_FOLDER": str(workshop.folder),
        "RECIPE": script,
        "PREFECT_INTEGRATIONS_PENSTOCK_POOL_PER_OP": "*",
    }
    return host.run_flow(name, FLOWS / f"{script}.py", *tags, settings=settings)


@pytest.mark.parametrize("names", [SIDE_BY_SIDE, ["run_total"], ["combined"]], ids=["side by side", "total", "combined"])
def test_never_more_together_than_the_recipe_says(
    host: PrefectHost, workshop: Workshop, names: list[str]
) -> None:
    workshop.configure(*[named for name in names if (named := NAMED[name].configuration)])
    children: list[subprocess.Popen[bytes]] = []

    def start_one(recipe: Recipe, number: int, tags: Tags) -> None:
        given = [f"{key}:{value}" for key, value in tags.items()]
        children.append(start(host, workshop, recipe.script, f"{recipe.name}-{number}", *given))

    def wait_for(what: str, condition: Callable[[], bool]) -> None:
        host.wait_for(what, condition, seconds=120)

    recipes = [NAMED[name] for name in names]
    run_together(workshop, recipes, start_one, wait_for)
    succeed(host, *children)
    assert workshop.nothing_left()
    for recipe in recipes:
        check(recipe, workshop.notes(recipe.script))
