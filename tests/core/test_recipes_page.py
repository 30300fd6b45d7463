"""The recipes' page: its code is that of the files which the hosts' tests run, its commands print what stands there."""

from __future__ import annotations

import os
import re
import time
from contextlib import closing
from pathlib import Path

from pages import ROOT, Example, blocks, examples, plain, rewrite, shell
from penstock import config_file
from penstock.store.sql import SqlStore
from recipes import CONFIGURATIONS, NAMED, ONLY_ONE

PAGE = "core/docs/recipes.md"
SHOWN = re.compile(r"\[[^\]]+\]\(([^)]+\.(?:py|yaml))\):\n\n```(?:py|yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LOOKS = ("penstock status", "penstock explain")
FOLDERS = [CONFIGURATIONS, ROOT / "airflow_provider" / "recipes", ROOT / "prefect_integration" / "recipes"]


def test_the_page_shows_every_file_as_it_is() -> None:
    """With PENSTOCK_TEST_REWRITE_PAGES=1 the page is written anew from the files."""
    path = ROOT / PAGE
    if os.environ.get("PENSTOCK_TEST_REWRITE_PAGES"):
        path.write_text(SHOWN.sub(lambda found: found[0].replace(found[2], of(found[1]).read_text()), path.read_text()))
    shown = {of(link): text for link, text in SHOWN.findall(path.read_text())}
    assert shown == {file: file.read_text() for folder in FOLDERS for file in folder.iterdir() if file.is_file()}


def of(link: str) -> Path:
    return (ROOT / PAGE).parent.joinpath(link).resolve()


def test_every_recipe_has_a_dag_and_a_flow_and_a_test() -> None:
    """The scripts of each host are those that the tests of both hosts run; every configuration is one of theirs."""
    scripts = {recipe.script for recipe in NAMED.values()} | {ONLY_ONE}
    for folder in FOLDERS[1:]:
        assert {path.stem for path in folder.glob("*.py")} == scripts
    named = {recipe.configuration for recipe in NAMED.values()} - {None} | {ONLY_ONE}
    assert {path.stem for path in CONFIGURATIONS.glob("*.yaml")} == named
    for path in CONFIGURATIONS.glob("*.yaml"):
        assert not config_file.read(path.read_text()).warnings


def test_every_command_prints_what_the_page_shows(tmp_path: Path) -> None:
    """With PENSTOCK_TEST_REWRITE_PAGES=1 the page is written anew from what they print."""
    rewriting = bool(os.environ.get("PENSTOCK_TEST_REWRITE_PAGES"))
    (tmp_path / "penstock.yaml").write_text(blocks(PAGE, "yaml")[-1])
    shown: list[tuple[Example, list[str]]] = []
    with shell(tmp_path) as terminal, closing(SqlStore(f"sqlite:///{tmp_path}/penstock.db")) as store:

        def claims() -> int:
            return len(store.snapshot().claims)

        for example in examples(PAGE):
            if example.command.endswith("&"):
                before = claims()
                terminal.begin(example.command, lambda before=before: claims() > before)  # type: ignore[misc]
                shown.append((example, []))
                continue
            printed = terminal.run(example.command)
            # What goes on behind comes to its slots a moment after there is room.
            deadline = time.monotonic() + (3 if rewriting else 20)
            while example.command.startswith(LOOKS) and time.monotonic() < deadline:
                if plain(printed) == plain(example.output) and not rewriting:
                    break
                time.sleep(0.2)
                printed = terminal.run(example.command)
            shown.append((example, printed))
    if rewriting:
        rewrite(PAGE, shown)
    for example, output in shown:
        assert plain(output) == plain(example.output), example.command
