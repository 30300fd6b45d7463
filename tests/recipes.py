"""The recipes of core/docs/recipes.md: which runs show each, what is never exceeded, and how all of them are run.

Both hosts run the same. Each recipe is held until as many are at work as it lets in, and more wait; then it is let go.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner
from configuring import configure
from intervals import Interval, most_at_once
from pages import EXIT, shell
from pages_read import BLOCK, COMING, RECIPES, ROOT, blocks
from penstock.cli import penstock
from penstock.engine import Engine

CONFIGURATIONS = ROOT / "core" / "docs" / "recipes"
AT_WORK = Path(__file__).parent / "at_work"
Tags = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One of them. Names of work are patterns that must match wholly.

    `runs` are the tags of those that are started together. `together`: how many are at one work, over all runs;
    `in_a_run`: in each run; `runs_together`: how many runs that do it. Each is reached, and none is ever exceeded.
    `waiting`: so many claims at least wait for limits whose key matches, when it is full. `first_alone`: the others are
    started when the first is at work.
    """

    name: str
    script: str
    configuration: str | None
    runs: Sequence[Tags]
    works: int
    waiting: Mapping[str, int]
    first_alone: bool = False
    together: Mapping[str, int] = field(default_factory=dict)
    in_a_run: Mapping[str, int] = field(default_factory=dict)
    runs_together: Mapping[str, int] = field(default_factory=dict)


NO_TAGS: Tags = {}
ALL = [
    Recipe(
        name="pools",
        script="pools",
        configuration="pools",
        runs=[NO_TAGS, NO_TAGS],
        works=6,
        together={"database": 2, "api": 1},
        waiting={"pool:database": 2, "pool:api": 1},
    ),
    Recipe(
        name="pool_of_runs",
        script="pool_of_runs",
        configuration="pool_of_runs",
        runs=[NO_TAGS, NO_TAGS],
        works=4,
        together={"warehouse": 1},
        runs_together={"warehouse": 1},
        waiting={"pool:warehouse": 1},
    ),
    Recipe(
        name="within_run",
        script="within_run",
        configuration=None,
        runs=[NO_TAGS, NO_TAGS],
        works=6,
        together={"transform": 4},
        in_a_run={"transform": 2},
        waiting={"run_ops:.*": 2},
    ),
    Recipe(
        name="op_tags",
        script="op_tags",
        configuration=None,
        runs=[NO_TAGS],
        works=4,
        together={"warehouse": 1, "lake": 2},
        waiting={"run_op_tag:.*:database=warehouse": 1},
    ),
    Recipe(
        name="run_tags",
        script="run_queue",
        configuration="run_tags",
        # One of 2023 begins: of the two backfills at work, both could be of other years.
        runs=[{"backfill": year} for year in ("2023", "2023", "2024", "2025")] + [{"sensor": "my_cool_sensor"}] * 2,
        works=6,
        first_alone=True,
        together={"sensor:my_cool_sensor": 1, "backfill:.*": 2, "backfill:2023": 1},
        waiting={"run_tag:sensor=my_cool_sensor": 1, "run_tag:backfill(=.*)?": 2},
    ),
    Recipe(
        name="pool_each",
        script="pool_each",
        configuration="pool_each",
        runs=[NO_TAGS, NO_TAGS],
        works=6,
        together={"orders": 1, "customers": 1, "unlimited": 2},
        waiting={"pool:op/.*": 2},
    ),
    Recipe(
        name="run_total",
        script="run_queue",
        configuration="run_total",
        runs=[{"backfill": "2024"}, {"backfill": "2025"}, NO_TAGS, NO_TAGS],
        works=4,
        first_alone=True,
        together={"backfill:.*": 1},
        runs_together={".*": 2},
        waiting={"run_tag:backfill": 1, "runs": 1},
    ),
    Recipe(
        name="combined",
        script="combined",
        configuration="combined",
        runs=[NO_TAGS, NO_TAGS, NO_TAGS],
        works=9,
        together={"report": 3},
        in_a_run={"report": 2},
        runs_together={"report": 2},
        waiting={"pool:reports|run_ops:.*": 1, "runs": 1},
    ),
]
NAMED = {recipe.name: recipe for recipe in ALL}
RUN_TOTAL, COMBINED = NAMED["run_total"], NAMED["combined"]
SIDE_BY_SIDE = [recipe for recipe in ALL if recipe not in (RUN_TOTAL, COMBINED)]
"""Those whose configurations can be one; the limits of the two others are those of everything that runs."""
ONLY_ONE = "only_one"
"""One more, in which nobody waits."""
FROM_DAGSTER = [
    Recipe(
        name="from_dagster_pool",
        script="combined",
        configuration=None,
        runs=[NO_TAGS],
        works=3,
        together={"report": 2},
        waiting={"pool:reports": 1},
    ),
    Recipe(
        name="from_dagster_team",
        script="run_queue",
        configuration=None,
        runs=[{"team": "ml"}] * 4,
        works=4,
        together={"team:ml": 3},
        waiting={r"run_tag:team=\*:ml": 1},
    ),
]
"""What the dagster.yaml on the page for those who come from Dagster lets in, when its steps have been gone."""


def go_the_way_from_dagster(folder: Path, store_url: str) -> None:
    """The commands of that page's steps, as they stand there, on this store."""
    (folder / "dagster.yaml").write_text(blocks(COMING, "yaml")[0])
    steps = COMING.read_text().partition("## In an afternoon")[2].partition("\n## ")[0]
    commands = [line for kind, block in BLOCK.findall(steps) if kind == "console" for line in block.splitlines()]
    assert len(commands) == 6
    with shell(folder) as terminal:
        for command in commands:
            if command.startswith("export PENSTOCK_STORE_URL="):
                terminal.environment["PENSTOCK_STORE_URL"] = store_url
            else:
                printed = terminal.run(command + EXIT)
                assert printed[-1] == "exit 0", printed


@dataclass(frozen=True, slots=True)
class Note:
    """What `work` noted: from when to when, by the machine's monotonic clock; `ended` None: it still goes on."""

    recipe: str
    what: str
    run: str
    began: float
    ended: float | None


class Workshop:
    """The folder in which the recipes' tasks note their work, beside the store whose limits they are under."""

    def __init__(self, folder: Path, engine: Engine, store_url: str) -> None:
        self.folder, self.engine, self.store_url = folder, engine, store_url

    def configure(self, *recipes: Recipe) -> None:
        """Put the configurations of these in force, as one."""
        self.put_in_force(*(recipe.configuration for recipe in recipes if recipe.configuration is not None))

    def put_in_force(self, *names: str) -> None:
        """As `configure`, by the names of their files."""
        merged: dict[str, Any] = {}
        for name in names:
            _merge(merged, yaml.safe_load((CONFIGURATIONS / f"{name}.yaml").read_text())["concurrency"])
        configure(self.engine, **merged)

    def hold(self, script: str) -> None:
        """Who comes to work from now on stays there."""
        (self.folder / f"{script}.hold").touch()

    def let_go(self, script: str) -> None:
        (self.folder / f"{script}.hold").unlink()

    def notes(self, script: str) -> list[Note]:
        read = [Note(**json.loads(path.read_text())) for path in self.folder.glob("*.note")]
        return [note for note in read if note.recipe == script]

    def is_at_work(self, script: str) -> bool:
        return any(note.ended is None for note in self.notes(script))

    def is_full(self, recipe: Recipe) -> bool:
        """Whether as many are at work as it lets in, and more wait."""
        notes = self.notes(recipe.script)
        waiters = self.engine.status()["waiters"]

        def waiting(pattern: str) -> int:
            return sum(any(re.fullmatch(pattern, one["limit"]) for one in row["blocked_by"]) for row in waiters)

        return all(
            sum(note.ended is None and bool(re.fullmatch(what, note.what)) for note in notes) >= number
            for what, number in recipe.together.items()
        ) and all(waiting(key) >= number for key, number in recipe.waiting.items())

    def nothing_left(self) -> bool:
        """Whether every slot is back."""
        status = self.engine.status()
        return not status["leases"] and not status["waiters"]

    def forget(self) -> None:
        """Delete the notes."""
        for path in [*self.folder.glob("*.note"), *self.folder.glob("*.hold")]:
            path.unlink(missing_ok=True)


def check(recipe: Recipe, notes: Sequence[Note]) -> None:
    """That everybody came to work, and never more together than the recipe says, and as many."""
    assert len(notes) == recipe.works

    def of(what: str) -> list[Note]:
        return [note for note in notes if re.fullmatch(what, note.what)]

    for what, number in recipe.together.items():
        assert most_at_once(map(_interval, of(what))) == number, what
    for what, number in recipe.in_a_run.items():
        runs = {note.run for note in notes}
        most = [most_at_once(_interval(note) for note in of(what) if note.run == run) for run in runs]
        assert max(most) == number, what
    for what, number in recipe.runs_together.items():
        assert most_at_once(_whole(of(what))) == number, what


def run_together(
    workshop: Workshop,
    recipes: Sequence[Recipe],
    start: Callable[[Recipe, int, Tags], None],
    wait_for: Callable[[str, Callable[[], bool]], None],
    when_full: Callable[[Recipe], None] = lambda _: None,
) -> None:
    """Run these side by side, each until it is full, and then on to its end. `start` starts its run of that number."""
    for recipe in recipes:
        workshop.hold(recipe.script)
        for number, tags in enumerate(recipe.runs):
            start(recipe, number, tags)
            if number == 0 and recipe.first_alone:
                wait_for("the first is at work", functools.partial(workshop.is_at_work, recipe.script))
    held = list(recipes)

    def each_was_full() -> bool:
        for recipe in [recipe for recipe in held if workshop.is_full(recipe)]:
            when_full(recipe)
            workshop.let_go(recipe.script)
            held.remove(recipe)
        return not held

    wait_for(f"each is full: {[recipe.name for recipe in recipes]}", each_was_full)


def ops_on_the_page(host: str) -> list[str]:
    """The lines that the page shows of `penstock pools ops`, of one host's ops."""
    lines = [line for block in blocks(RECIPES, "text") for line in block.splitlines()]
    return [" ".join(line.split()) for line in lines if line.startswith(f"{host}/prod ")]


def ops_shown(workshop: Workshop, host: str, deployment: str) -> list[str]:
    """What `penstock pools ops` prints of the ops in `pool_each`, as of an installation that is called `prod`."""
    shown = CliRunner().invoke(penstock, ["--store", workshop.store_url, "pools", "ops"], standalone_mode=False).stdout
    lines = [" ".join(line.split()) for line in shown.splitlines() if re.search("pool[-_]each", line)]
    return [line.replace(f"/{deployment}", "/prod") for line in lines if line.startswith(host)]


def _interval(note: Note) -> Interval:
    assert note.ended is not None, note
    return note.began, note.ended


def _whole(notes: Sequence[Note]) -> list[Interval]:
    """From the beginning of the first to the end of the last work of each run."""
    runs = {note.run: [_interval(other) for other in notes if other.run == note.run] for note in notes}
    return [(min(began for began, _ in each), max(ended for _, ended in each)) for each in runs.values()]


def _merge(into: dict[str, Any], block: Mapping[str, Any]) -> None:
    for key, value in block.items():
        if isinstance(value, Mapping):
            _merge(into.setdefault(key, {}), value)
        elif isinstance(value, list):
            into.setdefault(key, []).extend(value)
        else:
            assert into.setdefault(key, value) == value, f"two recipes say something else of {key}"
