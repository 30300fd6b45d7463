"""The pages on how it works, configuration and operations: what can be run is run, keys and figures are the code's."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from pages_read import (
    BLOCK,
    COMING,
    CONFIGURATION,
    FAULTS,
    HOW,
    OPERATIONS,
    PAGES,
    RECIPES,
    ROOT,
    SECURITY,
    SOAK,
    WEB,
    blocks,
    rows,
    said,
    sources,
)
from penstock import config, config_file, host_tags
from penstock.claim import CAPACITY_MAX, NAME_MAX_CHARACTERS, encode_part
from penstock.cli import COMMANDS, main
from penstock.config import Concurrency
from penstock.config_file import MAX_CHARACTERS
from penstock.connection import connect
from penstock.engine import Engine
from penstock.errors import ConfigError, DeploymentConflict
from penstock.request import Request
from penstock.settings import Settings, StoreTimes
from penstock.store import asking, deciding, dialects, granting, postgresql, reaping, reservation, tables
from penstock.store.contract import ClaimState
from penstock.store.sql import SqlStore
from penstock.wakeups import IDLE_SECONDS
from penstock.yaml_lines import MAX_DEPTH, MAX_NODES
from penstock_plugins.dagster import run_tags

LINKED = [
    *PAGES,
    RECIPES,
    FAULTS,
    SECURITY,
    SOAK,
    WEB,
    *(ROOT / name for name in ("README.md", "tests/README.md", "CHANGELOG.md")),
]


# -- links -------------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name if page.parent != ROOT / "tests" else "tests")
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), target


def test_the_first_page_leads_to_all_others() -> None:
    readme = (ROOT / "README.md").read_text()
    for page in [*PAGES, RECIPES, SECURITY, WEB, ROOT / "tests" / "README.md"]:
        assert f"]({page.relative_to(ROOT)})" in readme


# -- what can be run ---------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's penstock.yaml, and a store of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PENSTOCK_STORE_URL", f"sqlite:///{tmp_path / 'penstock.db'}")
    (tmp_path / "penstock.yaml").write_text(blocks(CONFIGURATION, "yaml")[0])
    for name, number in (("dagster.yaml", 0), ("tags.yaml", 2)):
        (tmp_path / name).write_text(blocks(COMING, "yaml")[number])
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_run(page: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for block in blocks(page, "console") for line in block.splitlines()]
    assert bool(lines) == (page is not HOW)
    for line in lines:
        words = shlex.split(line.replace("sqlite:////srv/", f"sqlite:///{here}/"))
        with monkeypatch.context() as patch:
            if words[0] == "export":
                name, _, value = words[1].partition("=")
                monkeypatch.setenv(name, value)
                continue
            while "=" in words[0]:
                patch.setenv(*words.pop(0).split("=", 1))
            assert words[0] == "penstock", line
            patch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as ended:
                main()
            assert ended.value.code == 0, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
@pytest.mark.usefixtures("here")
def test_the_python_blocks_run(page: Path) -> None:
    assert bool(blocks(page, "python")) == (page is CONFIGURATION)
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), {})


def test_the_commands_that_pages_name_are_there() -> None:
    for page in PAGES:
        named = set(re.findall(r"`penstock (?:--store \S+ )?([a-z]+)", page.read_text()))
        assert named <= COMMANDS.keys(), page


# -- the configuration -------------------------------------------------------------------------------------------------


def faults_of(text_of_file: str) -> list[str]:
    try:
        read = config_file.read(text_of_file)
    except ConfigError as error:
        return [f"penstock.yaml: {fault}" for fault in error.faults]
    return [f"penstock.yaml: warning: {warning}" for warning in read.warnings]


def test_faults_read_as_check_prints_them() -> None:
    good, faulty = blocks(CONFIGURATION, "yaml")
    printed = [block.splitlines() for block in blocks(CONFIGURATION, "text")]
    assert faults_of(good) == []
    assert faults_of(faulty) == printed[0]
    headless = ["pools:\n  default_limit: 1\n", "concurency:\n  pools: {}\n", "storage: {}\n"]
    assert [fault for one in headless for fault in faults_of(one)] == printed[1]
    of_no_effect = (
        "concurrency:\n  default_op_concurrency_limit: 1\n  runs:\n    tag_concurrency_limits:\n"
        "      - {key: dagster/backfill, limit: 10}\n"
    )
    assert faults_of(of_no_effect) == printed[2]


def test_every_key_is_named_with_its_default() -> None:
    named = {row[0].strip("`"): row[2] for row in rows(CONFIGURATION, "## Every key")}
    expected: dict[str, Any] = {}
    for block, name in ((config.Pools, "pools"), (config.Runs, "runs"), (config.Ops, "ops")):
        for key, entry in block.model_fields.items():
            expected[f"{name}.{key}"] = entry.get_default(call_default_factory=True)
    expected |= {f"pools.limits.NAME.{key}": None for key in config.PoolLimit.model_fields}
    assert named.keys() == expected.keys()
    for key, default in expected.items():
        if default not in (None, (), {}):
            assert named[key].strip("`") == str(default), key
    rule = {row[0].strip("`") for row in rows(CONFIGURATION, "A rule:")}
    assert rule == set(config.TagLimit.model_fields)
    assert set(Concurrency.model_fields) == {"pools", "runs", "ops"}


def test_keys_of_limits_are_encoded_as_the_page_says() -> None:
    page = CONFIGURATION.read_text()
    assert "Inside the parts of a key `%`, `:`, `=`, `/` and `*` are written" in page
    for code in map(encode_part, "%:=/*"):
        assert f"`{code}`" in page


# -- the local settings ------------------------------------------------------------------------------------------------


def test_every_setting_is_named_with_its_default() -> None:
    defaults = Settings()
    after = "can be given as `penstock.settings.Settings`:"
    table = {row[0].strip("`"): row[1].strip("`") for row in rows(CONFIGURATION, after)}
    assert table.keys() == {entry.name for entry in fields(Settings)}
    for name, shown in table.items():
        value = getattr(defaults, name)
        assert float(shown) == value if isinstance(value, float) else shown == str(value), name


def test_every_variable_is_named() -> None:
    code = sources("core/penstock", "plugins", "airflow_provider", "prefect_integration")
    read = set(re.findall(r"(?<![A-Z_])PENSTOCK_[A-Z_]+[A-Z]", code))
    read |= {f"PENSTOCK_{name}" for name in ("ENFORCEMENT", "ON_STORE_ERROR", "POOL_PER_OP")}
    named = set(re.findall(r"(?<![A-Z_])PENSTOCK_[A-Z_]+[A-Z]", CONFIGURATION.read_text()))
    assert {name for name in read if not re.search("_(INTEGRATIONS|TEST)", name)} <= named


def test_the_settings_of_the_hosts_are_named() -> None:
    prefect = (ROOT / "prefect_integration/penstock_prefect/settings.py").read_text()
    names = set(re.findall(r"^    (\w+): .* = Field\(", prefect, re.MULTILINE))
    in_prefect = {row[0].strip("`") for row in rows(CONFIGURATION, "### In Prefect")}
    assert in_prefect == {f"PREFECT_INTEGRATIONS_PENSTOCK_{name.upper()}" for name in names}


def test_a_second_installation_is_refused_in_these_words(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'penstock.db'}"
    here = {"host": "airflow", "deployment": "prod"}
    with (
        connect(url, **here, fingerprint="https://one.example.org") as one,
        connect(url, **here, fingerprint="https://two.example.org") as two,
    ):
        one.configuration()
        with pytest.raises(DeploymentConflict) as refused:
            two.configuration()
    assert blocks(CONFIGURATION, "text")[-1].strip() == str(refused.value)


# -- coming from Dagster -----------------------------------------------------------------------------------------------


def test_migrate_writes_and_says_what_the_page_shows(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["migrate", "dagster", "dagster.yaml", "-o", "taken.yaml"])
    assert ended.value.code == 0
    assert (here / "taken.yaml").read_text() == blocks(COMING, "yaml")[1]
    assert capfd.readouterr().err == blocks(COMING, "text")[0]


def test_the_tables_of_tags_are_the_codes() -> None:
    table = {row[0].strip("`"): tuple(re.findall(r"`(.*?)`", row[1])) for row in rows(COMING, "## Tags")}
    assert table == dict(run_tags.TABLE)
    named = said(COMING).partition("Tags that the hosts set:")[2].partition("##")[0]
    of_runs, _, of_ops = named.partition("of ops")
    assert set(re.findall(r"`(.*?)`", of_runs)) == set(host_tags.RUN_TAGS)
    assert set(re.findall(r"`(.*?)`", of_ops)) == set(host_tags.OP_TAGS)


# -- how it works ------------------------------------------------------------------------------------------------------


def test_the_diagram_and_the_table_have_every_state_and_the_same_changes() -> None:
    (diagram,) = blocks(HOW, "mermaid")
    drawn = {
        (begin.replace("[*]", "(new)"), end.replace("[*]", "(gone)"))
        for begin, end in re.findall(r"^ +(\S+) --> ([^\s:]+)", diagram, re.MULTILINE)
    }
    listed = rows(HOW, "The same as a table.")
    told = {(row[0], row[2]) for row in listed}
    assert drawn == told - {("(new)", "(nothing)")}
    assert {state for change in drawn for state in change} == {*map(str, ClaimState), "(new)", "(gone)"}
    for row in listed:
        for name in re.findall(r"`([\w.]+)`", row[3]):
            assert resolves(name), name


def resolves(name: str) -> bool:
    """Whether the code has what the page calls so: `Class.method`, `module.function` of the store, or a statement."""
    owner, _, member = name.rpartition(".")
    known = {"Dialect": dialects.Dialect, "SqlStore": SqlStore, "": postgresql}
    return hasattr(known.get(owner) or importlib.import_module(f"penstock.store.{owner}"), member)


def test_the_straight_line_is_there() -> None:
    listed = rows(HOW, "From a host's task to the statement, one file after the other:")
    folders = ["core", "core/penstock", "airflow_provider", "prefect_integration"]
    for row in listed:
        for name in re.findall(r"`(\S+\.py)`", row[1]):
            assert any((ROOT / folder / name).exists() for folder in folders), name
        for name in re.findall(r"`(Engine|Request|SqlStore)\.(\w+)`", row[1]):
            owner = {"Engine": Engine, "Request": Request, "SqlStore": SqlStore}
            assert hasattr(owner[name[0]], name[1]), name


def test_every_table_is_named() -> None:
    named = {name for row in rows(HOW, "## What the store holds") for name in re.findall(r"`(\w+)`", row[0])}
    assert named == {table.name for table in tables.metadata.sorted_tables}


MICRO = 1_000_000
SETTINGS, TIMES = Settings(), StoreTimes()
TTL, GRACE, MARGIN, SWEEP = (
    SETTINGS.session_ttl_seconds,
    TIMES.grace_seconds,
    SETTINGS.margin_seconds,
    SETTINGS.sweep_seconds,
)
FIGURES: dict[Path, list[str]] = {
    HOW: [
        f"Ended ones stay {TIMES.tombstone_seconds / 60:g} minutes",
        f"for locked rows, {TIMES.lock_seconds:g} s at most",
        f"{granting.GRANTS_PER_PASS} at most in one transaction",
        f"One with a process has {TIMES.acknowledge_least_seconds:g} s and half as long as it has waited, "
        f"{TIMES.acknowledge_seconds:g} s at most",
        f"a ticket (see below) {TIMES.acknowledge_ticket_seconds:g} s",
        f"{asking.PRIORITY_STEP // MICRO} s`, the bonus",
        f"that come within {2 * asking.PRIORITY_BOUND // MICRO // 3600} h after it",
        f"aged after {asking.AGED // MICRO} s",
        f"pools for {reservation.RESERVED // MICRO} s of every {reservation.PERIOD // MICRO} s",
        f"every TTL/3 ({SETTINGS.beat_seconds:g} s of {TTL:g})",
        f"{GRACE:g} s (grace) after the row expired",
        f"before its deadline, {SETTINGS.ticket_seconds:g} s each time",
        f"after {SETTINGS.run_probe_seconds / 3600:g} h without any touch",
        f"only after TTL + {GRACE:g} s",
        f"The margin is TTL/5, at most {MARGIN:g} s",
        f"knows {MARGIN + GRACE:g} s before anybody else",
        f"For {asking.HEARD_OF // MICRO} s after a change",
        f"{SETTINGS.poll_min_seconds * 1000:g} ms at first, up to {SETTINGS.poll_max_seconds:g} s",
        f"every {SETTINGS.upkeep_seconds / 60:g} minutes, lines older than {SETTINGS.history_days:g} days",
        f"{TTL:g} + {GRACE:g} + {SWEEP:g} s (in Airflow 60 + {GRACE:g} + {SWEEP:g} s)",
        f"by more than {reaping.JUMP // MICRO} s",
        f"every ticket {reaping.TICKET_AFTER_JUMP // MICRO // 60} minutes",
        f"nobody said so for {deciding.SKIPPED_SECONDS / 3600:g} h",
        "Linux: `CLOCK_BOOTTIME`",
    ],
    CONFIGURATION: [
        f"Limits are whole numbers from 0 to {CAPACITY_MAX}",
        f"1 to {NAME_MAX_CHARACTERS} characters",
        f"{MAX_CHARACTERS:,} characters, {MAX_NODES:,} values or {MAX_DEPTH} levels".replace(",0", " 0"),
        f"given away, {GRACE:g} s; the time to acknowledge a grant, ",
        f"a grant, {TIMES.acknowledge_least_seconds:g} to {TIMES.acknowledge_seconds:g} s, for tickets",
        f"for tickets {TIMES.acknowledge_ticket_seconds:g} s",
        f"ended claims are remembered for {TIMES.tombstone_seconds:g} s",
        f"the longest wait for a lock, {TIMES.lock_seconds:g} s",
        f"pauses from 0.2 s to 3 s, for {SETTINGS.store_retry_seconds:g} s",
    ],
    COMING: [
        f"is worth {asking.PRIORITY_STEP // MICRO} s of waiting",
        f"overtaken for {2 * asking.PRIORITY_BOUND // MICRO // 3600:d} hours at most".replace(" 2 ", " two "),
        f"a limit is at most {CAPACITY_MAX}",
    ],
    OPERATIONS: [
        f"1, up to {asking.CONNECTIONS} when as many threads ask at once",
        f"while it waits and {IDLE_SECONDS:g} s longer",
        f"{asking.CONNECTIONS + 2} at most, 2 or 3 as a rule",
        "as a rule, and 6",
        f"l.classid = {postgresql.GRANT_LOCK}",
        f"nothing for TTL + {GRACE + SWEEP:g} s",
        f"up to {reservation.RESERVED // MICRO} s of every {reservation.PERIOD // MICRO} s",
    ],
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_figures_are_the_codes(page: Path) -> None:
    words = said(page)
    assert [figure for figure in FIGURES[page] if figure not in words] == []


def test_the_working_page_names_what_is_there() -> None:
    page = (ROOT / "tests" / "README.md").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    for environment in re.findall(r"tox run -e (\w+)", page):
        assert f"[tool.tox.env.{environment}]" in project
    used = set(re.findall(r"PENSTOCK_TEST_[A-Z]+(?:_[A-Z]+)*", sources("tests")))
    assert set(re.findall(r"`(PENSTOCK_TEST_\w+)`", page)) == used
    for path in re.findall(r"`((?:core|tests|plugins|airflow_provider|prefect_integration)/[\w/.]+)`", page):
        assert (ROOT / path).exists(), path
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
