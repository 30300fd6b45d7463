"""The plugin author's page says what is there: every hook as it is called, every setting, and an example that works."""

from __future__ import annotations

import inspect
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import penstock_plugins.logging as logging_plugin
import penstock_plugins.opentelemetry as opentelemetry_plugin
import pytest
from configuring import configure
from penstock import hookspecs
from penstock.errors import WaitTimeout
from penstock.hooks import DISABLED_VARIABLE
from penstock.hookspecs import CHANGES, OBSERVERS, QUESTIONS, TASKS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "plugins" / "README.md").read_text()
TEXT = " ".join(PAGE.split())
SPECS = {name: spec for name, spec in vars(hookspecs).items() if name.startswith("penstock_")}
ERRORS = {
    **dict.fromkeys(CHANGES, "An error fails the claim with `PluginError`."),
    **dict.fromkeys(OBSERVERS, "An error is logged"),
    **dict.fromkeys(QUESTIONS, "An error is logged"),
    **dict.fromkeys(TASKS, "any other error becomes a `PluginError`"),
}


def block(language: str, first_line: str) -> str:
    """The example on the page that begins so."""
    (body,) = re.findall(rf"^```{language}\n# {re.escape(first_line)}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(body)


def paragraph(hook_name: str) -> str:
    """What the page says of a hook."""
    (found,) = re.findall(rf"\*\*`{hook_name}\(.*?(?= \*\*`penstock_| ### | ## )", TEXT)
    return str(found)


@pytest.mark.parametrize("name", SPECS)
def test_every_hook_is_on_the_page_as_it_is_called(name: str) -> None:
    arguments = ", ".join(inspect.signature(SPECS[name]).parameters)
    text = paragraph(name)
    assert text.startswith(f"**`{name}({arguments})`**")
    assert "Called" in text
    assert "thread" in text
    assert ERRORS[name] in text


def test_the_page_names_no_hook_that_is_none() -> None:
    assert set(re.findall(r"\bpenstock_[a-z]+_[a-z_]+(?=\()", PAGE)) <= set(SPECS)


@pytest.mark.parametrize("name", SPECS)
def test_every_hook_has_a_test_of_its_own(name: str) -> None:
    tests = (Path(__file__).parent / "test_hooks.py").read_text()
    assert re.search(rf"^def test_\w*{name.removeprefix('penstock_')}", tests, re.MULTILINE)


def test_every_setting_and_figure_is_on_the_page() -> None:
    instruments = (ROOT / "plugins" / "penstock_plugins" / "instruments.py").read_text()
    names = [DISABLED_VARIABLE, logging_plugin.JSON_VARIABLE, opentelemetry_plugin.GAUGE_SECONDS_VARIABLE]
    names += re.findall(r'"(penstock\.[a-z.]+)"', instruments)
    names += list(logging_plugin._of(_claim()))
    names += re.findall(r'_tell\("(\w+)"', inspect.getsource(logging_plugin))
    for name in names:
        assert f"`{name}" in PAGE, name


def _claim() -> Any:
    from penstock.claim import Claim

    return Claim(kind="op", host="h", deployment="d")


def test_the_example_works(new_engine: Any, caplog: pytest.LogCaptureFixture) -> None:
    module = ModuleType("penstock_on_call")
    exec(block("python", "penstock_on_call.py"), module.__dict__)
    engine = new_engine(module)
    configure(engine, pools={"limits": {"night_shift": 1}})
    with engine.hold("warehouse", tags={"shift": "night"}), engine.hold("warehouse") as by_day:
        assert set(by_day.fences) == {"pool:warehouse"}
        with pytest.raises(WaitTimeout):
            engine.acquire(engine.claim("warehouse", op_id="x", tags={"shift": "night"}), wait_timeout_seconds=0.1)
    assert "process/process x waits for night_shift: 1 of 1 held" in caplog.text


def test_the_examples_metadata_is_that_of_a_plugin() -> None:
    example = tomllib.loads(block("toml", "pyproject.toml"))
    ours = tomllib.loads((ROOT / "tests" / "plugins" / "third_party" / "pyproject.toml").read_text())
    assert example["project"]["entry-points"] == {"penstock": {"on_call": "penstock_on_call"}}
    assert example["project"].keys() <= ours["project"].keys()
    assert example["build-system"]["build-backend"] == ours["build-system"]["build-backend"]
