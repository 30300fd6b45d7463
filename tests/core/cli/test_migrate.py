"""`penstock migrate dagster`: what it writes, what it says, and that bad input leaves no file behind."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from penstock.config_file import read
from penstock.engine import Engine
from situations import CALM, NewEngine

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
pytestmark = pytest.mark.parametrize("store_kind", ["sqlite"], indirect=True)

TEXT = """\
run_monitoring: {free_slots_after_run_end_seconds: 300}
concurrency:
  pools: {default_limit: 2}
  runs:
    max_concurrent_runs: 15
    tag_concurrency_limits:
      - {key: dagster/partition, limit: 1}
"""
WARNED = "'dagster/partition': no host sets this tag by itself, so the rule matches only those that you tag"
LIMIT_OF_PLUS = "sso_default_role: EDITOR\nmax_concurrent_branch_deployment_runs: 50\n"


@pytest.fixture
def engine(new_engine: NewEngine) -> Engine:
    return new_engine(settings=CALM)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "dagster.yaml"
    path.write_text(TEXT)
    return path


def test_the_file_that_it_writes(cli: Cli, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "penstock.yaml"
    done = cli("migrate", "dagster", str(source), "-o", str(out))
    assert (done.returncode, done.stdout) == (0, "")
    assert out.read_text() == (
        f"# From {source} by `penstock migrate dagster`.\n"
        "concurrency:\n"
        "  pools:\n"
        "    # dagster.yaml, line 3: concurrency.pools.default_limit\n"
        "    default_limit: 2\n"
        "    # Dagster's default: it is set nowhere\n"
        "    granularity: op\n"
        "    # Dagster's default: it is set nowhere\n"
        "    op_granularity_run_buffer: 0\n"
        "  runs:\n"
        "    # dagster.yaml, line 5: concurrency.runs.max_concurrent_runs\n"
        "    max_concurrent_runs: 15\n"
        "    tag_concurrency_limits:\n"
        "      # dagster.yaml, line 7: concurrency.runs.tag_concurrency_limits[0]\n"
        "      # No host sets this tag by itself: in Airflow `run_tag_keys` names keys of a run's conf or params that "
        "become its tags; in Prefect tag the flow run\n"
        "      - {key: dagster/partition, limit: 1}\n"
    )
    assert (
        f"{source}: line 1: run_monitoring.free_slots_after_run_end_seconds: slots are free as soon as" in done.stderr
    )
    assert (
        f"{source}: Limits of single pools are in Dagster's database alone: name it by --instance-url." in done.stderr
    )
    assert f"warning: line 16: concurrency.runs.tag_concurrency_limits[0].key: {WARNED}" in done.stderr
    assert stat.S_IMODE(out.stat().st_mode) == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def test_without_a_file_it_goes_to_stdout(cli: Cli, source: Path) -> None:
    done = cli("migrate", "dagster", str(source))
    assert done.returncode == 0
    assert read(done.stdout).concurrency.runs.max_concurrent_runs == 15
    assert WARNED in done.stderr


def test_another_file_is_replaced_only_when_that_is_said(cli: Cli, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "penstock.yaml"
    out.write_text("mine")
    done = cli("migrate", "dagster", str(source), "-o", str(out))
    assert (done.returncode, out.read_text()) == (2, "mine")
    assert "nothing was changed; add --yes" in done.stderr
    done = cli("migrate", "dagster", str(source), "-o", str(out), answer="n\n")
    assert (done.returncode, out.read_text()) == (0, "mine")
    assert cli("migrate", "dagster", str(source), "-o", str(out), answer="y\n").returncode == 0
    assert out.read_text().startswith("# From ")
    link = tmp_path / "link.yaml"
    link.symlink_to(out)
    assert cli("migrate", "dagster", str(source), "-o", str(link), "--yes").returncode == 0
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.glob("*.yaml")) == ["dagster.yaml", "link.yaml", "penstock.yaml"]


def test_a_file_that_cannot_be_written(cli: Cli, source: Path, tmp_path: Path) -> None:
    done = cli("migrate", "dagster", str(source), "-o", str(tmp_path / "no such folder" / "penstock.yaml"))
    assert done.returncode == 1
    assert "No such file or directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_limit_without_a_counterpart_is_named_and_strict_exits_1(cli: Cli, source: Path, tmp_path: Path) -> None:
    source.write_text(LIMIT_OF_PLUS)
    out = tmp_path / "penstock.yaml"
    done = cli("migrate", "dagster", str(source), "-o", str(out))
    assert done.returncode == 0
    named = "no counterpart: line 2: max_concurrent_branch_deployment_runs: there are no branch deployments here"
    assert named in done.stderr
    assert f"# {named[0].upper()}{named[1:]}" in out.read_text()
    assert cli("migrate", "dagster", str(source), "-o", str(out), "--yes", "--strict").returncode == 1
    source.write_text(TEXT)
    assert cli("migrate", "dagster", str(source), "-o", str(out), "--yes", "--strict").returncode == 0


def test_the_report_as_json(cli: Cli, source: Path, tmp_path: Path) -> None:
    done = cli("migrate", "dagster", str(source), "-o", str(tmp_path / "penstock.yaml"), "--json")
    told = json.loads(done.stdout)
    assert told.keys() == {"left_out", "notes", "origins", "warnings", "report"}
    assert told["origins"]["runs.max_concurrent_runs"] == "dagster.yaml, line 5: concurrency.runs.max_concurrent_runs"
    assert [warning["line"] for warning in told["warnings"]] == [16]
    assert cli("migrate", "dagster", str(source), "--json").returncode == 2


def test_a_rule_that_no_host_matches_is_warned_of_by_all_four(
    cli: Cli, source: Path, tmp_path: Path, engine: Engine
) -> None:
    out = str(tmp_path / "penstock.yaml")
    for command in (
        ("migrate", "dagster", str(source), "-o", out),
        ("check", out),
        ("plan", out),
        ("apply", out, "--yes"),
    ):
        assert WARNED in cli(*command).stderr, command
    assert f"concurrency.runs.tag_concurrency_limits[0]: {WARNED}" in cli("doctor").stdout
    assert engine.configuration(fresh=True)[1].runs.max_concurrent_runs == 15


# -- bad input ---------------------------------------------------------------------------------------------------------

BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{here}: &{here} [{', '.join([f'*{before}'] * 9)}]\n" for before, here in zip("abcdefg", "bcdefgh", strict=True)
)
BAD = {
    "not YAML": (b"concurrency: [", "not YAML"),
    "a list": (b"- a\n", "a block of keys, such as `concurrency:`, is expected at the top"),
    "10 MB": (b"a: b # " + b"x" * 10_000_000, "a configuration of more than 1000000 characters is refused"),
    "alias bomb": (BOMB.encode(), "more than 100000 values"),
    "nested": (b"[" * 5_000, ""),
    "duplicate keys": (
        b"concurrency: {}\nconcurrency: {}\n",
        "line 2: concurrency: the key stands twice, first on line 1",
    ),
    "tabs": (b"concurrency:\n\tpools: {}\n", "line 2: not YAML: a tab where YAML wants spaces"),
    "UTF-16": ("concurrency: {}\n".encode("utf-16"), "not UTF-8 text"),
    "several documents": (b"concurrency: {}\n---\nconcurrency: {}\n", "line 3: a second YAML document begins here"),
    "wrong types": (b"concurrency: {pools: {default_limit: two}}\n", "'two' found; a whole number is expected"),
    "unknown key": (b"concurrency: {pool: {}}\n", "concurrency.pool: no such key; Dagster knows: "),
    "NUL": (b"concurrency: {pools: {default_limit: \0}}\n", "the character '\\x00' is not allowed"),
    "an unset variable": (
        b"run_queue: {max_concurrent_runs: {env: NOT_SET_ANYWHERE}}\n",
        "NOT_SET_ANYWHERE is not set",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error_and_no_file(cli: Cli, tmp_path: Path, case: str) -> None:
    data, says = BAD[case]
    path = tmp_path / "dagster.yaml"
    path.write_bytes(data)
    done = cli("migrate", "dagster", str(path), "-o", str(tmp_path / "penstock.yaml"))
    assert done.returncode == 1
    assert done.stdout == ""
    assert f"penstock: {path}: " in done.stderr
    assert says in done.stderr
    assert len(done.stderr) < 1000
    assert [each.name for each in tmp_path.glob("*penstock.yaml*")] == []


@pytest.mark.parametrize(
    ("given", "says"),
    [("nowhere.yaml", "No such file or directory"), ("x" * 5000, "File name too long"), ("/dev/zero", "more than")],
)
def test_a_source_that_cannot_be_read(cli: Cli, tmp_path: Path, given: str, says: str) -> None:
    out = tmp_path / "penstock.yaml"
    done = cli("migrate", "dagster", given, "-o", str(out))
    assert done.returncode == 1
    assert done.stderr.startswith(f"penstock: {given}: ")
    assert says in done.stderr
    assert not out.exists()


def test_a_byte_order_mark_is_no_fault(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "dagster.yaml"
    path.write_bytes(b"\xef\xbb\xbfconcurrency: {runs: {max_concurrent_runs: 3}}\n")
    assert "max_concurrent_runs: 3" in cli("migrate", "dagster", str(path)).stdout


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nowhere.db", "no SQLite file at nowhere.db"),
        ("sqlite:////nowhere.db", "no SQLite file at /nowhere.db"),
        ("mysql://u:s3cret@h/d", "mysql found; Dagster's database is read from SQLite and PostgreSQL"),
        (
            "postgresql://u:s3cret@127.0.0.1:1/d",
            "Dagster's database postgresql+psycopg://u:***@127.0.0.1:1/d cannot be read",
        ),
        ("nonsense://", "nonsense found; Dagster's database is read from SQLite and PostgreSQL"),
        ("://", "not a database URL"),
        ("x" * 5000, "cannot be read: File name too long"),
    ],
)
def test_a_database_that_cannot_be_read(cli: Cli, source: Path, tmp_path: Path, url: str, says: str) -> None:
    out = tmp_path / "penstock.yaml"
    done = cli("migrate", "dagster", str(source), "-o", str(out), "--instance-url", url)
    assert done.returncode == 1
    assert says in done.stderr
    assert "s3cret" not in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_a_database_with_other_tables(cli: Cli, source: Path, tmp_path: Path, engine: Engine) -> None:
    """Our own store, for instance."""
    engine.configuration(fresh=True)
    done = cli("migrate", "dagster", str(source), "--instance-url", str(tmp_path / "penstock.db"))
    assert done.returncode == 1
    assert "no table concurrency_slots: this is not the database of Dagster's event log" in done.stderr


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        (
            "CREATE TABLE concurrency_limits (concurrency_key TEXT, cap INTEGER); "
            "INSERT INTO concurrency_limits VALUES ('database', 2)",
            "cannot be read: no such column: concurrency_limits.limit",
        ),
        (
            'CREATE TABLE concurrency_limits (concurrency_key TEXT, "limit"); '
            "INSERT INTO concurrency_limits VALUES ('database', 'two')",
            "the table concurrency_limits holds 'database' with a limit of 'two', which is no number",
        ),
        (
            'CREATE TABLE concurrency_limits (concurrency_key TEXT, "limit" INTEGER); '
            "INSERT INTO concurrency_limits VALUES (NULL, 2), ('database', 1)",
            "the table concurrency_limits holds None with a limit of 2",
        ),
        ("", "cannot be read: no such column: concurrency_slots.deleted"),
    ],
)
def test_a_database_whose_tables_are_others(cli: Cli, source: Path, tmp_path: Path, tables: str, says: str) -> None:
    path, out = tmp_path / "index.db", tmp_path / "penstock.yaml"
    with closing(sqlite3.connect(path)) as database:
        database.executescript(f"CREATE TABLE concurrency_slots (concurrency_key TEXT); {tables}")
    done = cli("migrate", "dagster", str(source), "-o", str(out), "--instance-url", str(path))
    assert done.returncode == 1
    assert f"penstock: {source}: --instance-url: " in done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()
