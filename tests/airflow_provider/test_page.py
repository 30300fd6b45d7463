"""The Airflow user's page: its commands print what stands there, its code is a DAG, its settings are the provider's."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from pages import ROOT, blocks, examples, plain, rewrite, shell
from penstock_airflow.provider_info import get_provider_info

PAGE = "airflow_provider/README.md"
VERSION = re.compile(r"Airflow \d+\.\d+\.\d+")


def test_every_command_prints_what_the_page_shows(tmp_path: Path) -> None:
    """With PENSTOCK_TEST_REWRITE_PAGES=1 the page is written anew from what they print."""
    with shell(tmp_path) as terminal:
        terminal.environment |= {
            "AIRFLOW_HOME": str(tmp_path / "airflow"),
            "AIRFLOW__PENSTOCK__STORE_URL": f"sqlite:///{tmp_path}/penstock.db",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "NO_COLOR": "1",
        }
        terminal.run("airflow db migrate")
        shown = [(example, _of_penstock(terminal.run(example.command))) for example in examples(PAGE)]
    if os.environ.get("PENSTOCK_TEST_REWRITE_PAGES"):
        rewrite(PAGE, shown)
    for example, output in shown:
        assert _plain(output) == _plain(example.output), example.command


def _of_penstock(lines: list[str]) -> list[str]:
    """Without what Airflow itself tells: that its pools command will move, what its logging is at."""
    return [line for line in lines if not re.search(r"\[(warning|info) |Warning|^  \w+\($", line)]


def _plain(lines: list[str]) -> list[str]:
    return plain([VERSION.sub("Airflow VERSION", line) for line in lines])


def test_the_code_is_a_dag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.sdk import DAG

    (block,) = blocks(PAGE, "python")
    namespace: dict[str, object] = {}
    found: list[DAG] = []
    original = DAG.__init__

    def remember(self: DAG, *args: object, **kwargs: object) -> None:
        original(self, *args, **kwargs)
        found.append(self)

    monkeypatch.setattr(DAG, "__init__", remember)
    exec(compile(block, PAGE, "exec"), namespace)
    assert found[0].dag_id == "nightly"
    assert {"load", "copy", "refresh", "reports.send"} == set(found[0].task_dict)


def test_the_settings_are_the_providers() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \| (.*) \|$", (ROOT / PAGE).read_text(), re.MULTILINE)
    options = get_provider_info()["config"]["penstock"]["options"]
    assert rows == [
        (name, f"`{option['default']}`" if option["default"] else "—", option["description"].replace("``", "`"))
        for name, option in options.items()
    ]


def test_the_examples_that_ship_are_named_by_their_folder() -> None:
    assert "](penstock_airflow/example_dags)" in (ROOT / PAGE).read_text()
    folder = ROOT / "airflow_provider" / "penstock_airflow" / "example_dags"
    names = [path.stem for path in folder.glob("penstock_*.py")]
    assert len(names) == 7
    for name in names:
        assert f"def {name}(" in (folder / f"{name}.py").read_text()
