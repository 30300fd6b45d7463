"""The protocol models hold, each of their guards is needed, and the page ties them to functions that exist.

With `PENSTOCK_TEST_MODEL=all` the large models, too; `python tests/model/check.py` prints the tables.
"""

from __future__ import annotations

import importlib
import os
import re

import pytest
from pages import ROOT
from servers import missing as is_missing

from model.check import HERE, LONG, MUTANTS, SHORT, Check, missing, run

PAGE = ROOT / "core" / "docs" / "protocol.md"
GUARD = re.compile(r"\b(?:WITHOUT_[A-Z_]+|[A-Z_]+_INSTEAD|[A-Z_]+_WITHOUT_[A-Z]+)\b")
checks = [*SHORT, *(LONG if os.environ.get("PENSTOCK_TEST_MODEL") == "all" else ())]


@pytest.fixture(scope="module", autouse=True)
def _spin() -> None:
    if why := missing():
        is_missing(why)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("check", checks, ids=lambda check: check.name)
def test_the_model_holds(check: Check) -> None:
    found = run(check)
    assert found.fault is None
    assert found.all_seen


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_without_a_guard_the_checker_finds_fault(mutant: Check) -> None:
    assert run(mutant, quick=True).fault is not None


def test_every_guard_of_the_models_is_taken_out_once() -> None:
    guards = {(path.stem, guard) for path in HERE.glob("*.pml") for guard in _tested(path.read_text())}
    assert guards == {(mutant.model, mutant.flags[0]) for mutant in MUTANTS}


def _tested(text: str) -> set[str]:
    conditions = "\n".join(line for line in text.splitlines() if re.match(r"#\s*(if|elif)", line))
    return set(GUARD.findall(conditions))


def test_the_page_names_functions_that_exist() -> None:
    steps = re.findall(r"^\| [^|]+ \| [^|]+ \| ([^|]+) \|$", PAGE.read_text(), re.MULTILINE)
    names = [name for step in steps for name in re.findall(r"`(penstock[\w.]+)`", step)]
    assert len(names) > 15
    for name in names:
        _find(name)


def _find(name: str) -> object:
    """The object of that dotted name. Raises AttributeError."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise AttributeError(name)
