"""`penstock import airflow-pools` and `export airflow-pools`: asked, shown, and nothing else changed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from penstock import changes
from penstock.config import Concurrency
from penstock.engine import Engine
from situations import CALM, NewEngine

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
pytestmark = pytest.mark.parametrize("store_kind", ["sqlite"], indirect=True)

POOLS = {
    "api": {"slots": 3, "description": "the API", "include_deferred": False},
    "warehouse": {"slots": 8, "description": "", "include_deferred": False},
    "default_pool": {"slots": 128, "description": "Default pool", "include_deferred": False},
    "free": {"slots": -1, "description": "", "include_deferred": False},
}


@pytest.fixture
def engine(new_engine: NewEngine) -> Engine:
    return new_engine(settings=CALM)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pools.json"
    path.write_text(json.dumps(POOLS))
    return path


def limits(engine: Engine) -> dict[str, Any]:
    found: dict[str, Any] = engine.configuration(fresh=True)[1].document()
    return found


def test_import_sets_the_pools_and_leaves_the_rest(cli: Cli, file: Path, engine: Engine) -> None:
    before = {
        "pools": {
            "default_limit": 1,
            "limits": {"warehouse": {"limit": 4, "granularity": "run", "description": "XL"}, "other": 2, "free": 5},
        },
        "runs": {"max_concurrent_runs": 15},
    }
    changes.apply(engine, Concurrency.model_validate(before), expected_version=0)
    done = cli("import", "airflow-pools", str(file), "--yes")
    assert done.returncode == 0, done.stderr
    assert "+ concurrency.pools.limits.api.limit: 3\n" in done.stdout
    assert "pool:warehouse  4 -> 8\n" in done.stdout
    assert done.stdout.endswith("imported as version 2\n")
    assert "default_pool is left out, in which every task is that names no pool; --default-pool" in done.stderr
    assert "their limits here stay as they are: free.\n" in done.stderr
    after = limits(engine)
    assert after["runs"] == before["runs"]
    assert after["pools"] == {
        "default_limit": 1,
        "limits": {
            "warehouse": {"limit": 8, "granularity": "run", "description": "XL"},
            "other": {"limit": 2},
            "free": {"limit": 5},
            "api": {"limit": 3, "description": "the API"},
        },
    }
    again = cli("import", "airflow-pools", str(file))
    assert (again.returncode, again.stdout) == (0, "nothing to change\n")


def test_import_asks_first(cli: Cli, file: Path, engine: Engine) -> None:
    assert cli("import", "airflow-pools", str(file)).returncode == 2
    declined = cli("import", "airflow-pools", str(file), answer="n\n")
    assert declined.returncode == 0
    assert "nothing was changed" in declined.stdout
    assert engine.configuration(fresh=True)[0] == 0
    assert cli("import", "airflow-pools", str(file), answer="y\n").returncode == 0
    assert limits(engine)["pools"]["limits"].keys() == {"api", "warehouse"}


def test_import_takes_default_pool_only_when_asked(cli: Cli, file: Path, engine: Engine) -> None:
    assert cli("import", "airflow-pools", str(file), "--default-pool", "--yes").returncode == 0
    assert limits(engine)["pools"]["limits"]["default_pool"]["limit"] == 128


def test_import_names_every_fault_with_the_file(cli: Cli, file: Path, engine: Engine) -> None:
    file.write_text('{"a": {"slots": "x"}, "b": {}}')
    done = cli("import", "airflow-pools", str(file), "--yes")
    assert done.returncode == 1
    assert [line.split(": slots")[0] for line in done.stderr.splitlines()] == [f"penstock: {file}: a", f"{file}: b"]
    assert engine.configuration(fresh=True)[0] == 0


def test_import_without_its_plugin_says_so(
    cli: Cli, file: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from penstock import hooks

    monkeypatch.setenv("PENSTOCK_PLUGINS_DISABLED", "airflow_pools")
    hooks.installed_plugins.cache_clear()
    try:
        done = cli("import", "airflow-pools", str(file), "--yes")
    finally:
        hooks.installed_plugins.cache_clear()
    assert done.returncode == 1
    assert "no plugin reads airflow-pools" in done.stderr
    assert engine.configuration(fresh=True)[0] == 0


def test_export_writes_what_airflow_takes(cli: Cli, tmp_path: Path, engine: Engine) -> None:
    pools = {"limits": {"api": {"limit": 3, "description": "the API"}, "database": 2, "default_pool": 9}}
    changes.apply(engine, Concurrency.model_validate({"pools": pools}), expected_version=0)
    assert json.loads(cli("export", "airflow-pools").stdout) == {
        "api": {"slots": -1, "description": "the API", "include_deferred": False},
        "database": {"slots": -1, "description": "limited by Penstock", "include_deferred": False},
    }
    path = tmp_path / "out.json"
    done = cli("export", "airflow-pools", "-o", str(path), "--slots", "same", "--default-pool")
    assert (done.stdout, done.stderr) == ("", f"{path}: 3 pools\n")
    assert [each.name for each in tmp_path.glob("*out.json*")] == ["out.json"]
    assert {name: pool["slots"] for name, pool in json.loads(path.read_text()).items()} == {
        "api": 3,
        "database": 2,
        "default_pool": 9,
    }
    unwritable = cli("export", "airflow-pools", "-o", str(tmp_path / "nowhere" / "out.json"))
    assert unwritable.returncode == 1
    assert "nowhere/out.json" in unwritable.stderr


def test_import_strict_exits_1_when_a_limit_has_no_counterpart(cli: Cli, file: Path, engine: Engine) -> None:
    assert cli("import", "airflow-pools", str(file), "--strict", "--yes").returncode == 0
    file.write_text('{"two words": {"slots": 2}, "db": {"slots": 2}}')
    assert cli("import", "airflow-pools", str(file), "--yes").returncode == 0
    done = cli("import", "airflow-pools", str(file), "--strict", "--yes")
    assert done.returncode == 1
    assert f"{file}: no counterpart: pool 'two words' of 2 slots: a pool of Penstock has no white space" in done.stderr
    assert "db" in limits(engine)["pools"]["limits"]


def test_import_as_json(cli: Cli, file: Path, engine: Engine) -> None:
    file.write_text('{"two words": {"slots": 2}, "db": {"slots": 2}}')
    done = cli("import", "airflow-pools", str(file), "--json")
    assert (done.returncode, done.stdout) == (2, "")
    done = cli("import", "airflow-pools", str(file), "--json", "--yes")
    told = json.loads(done.stdout)
    assert told.keys() >= {"left_out", "notes", "origins", "report", "changes", "limits", "imported_as"}
    assert (told["imported_as"], told["left_out"][0]["path"]) == (1, "pool 'two words' of 2 slots")
    assert json.loads(cli("import", "airflow-pools", str(file), "--json").stdout)["imported_as"] is None


def test_the_configuration_comes_back_from_the_file_that_was_exported(cli: Cli, tmp_path: Path, engine: Engine) -> None:
    block = {
        "pools": {"default_limit": 1, "limits": {"a": 2, "b": {"limit": 3, "granularity": "run", "description": "é"}}},
        "runs": {"max_concurrent_runs": 4, "tag_concurrency_limits": [{"key": "team", "value": "x", "limit": 1}]},
    }
    changes.apply(engine, Concurrency.model_validate(block), expected_version=engine.configuration(fresh=True)[0])
    before = engine.configuration(fresh=True)
    path = tmp_path / "kept.yaml"
    assert cli("export", "file", "-o", str(path)).stderr == f"{path}: version {before[0]}\n"
    assert cli("export", "file").stdout == path.read_text()
    assert cli("pools", "set", "a", "7").returncode == cli("pools", "set", "new", "1").returncode == 0
    assert cli("apply", str(path), "--prune", "--yes").returncode == 0
    assert engine.configuration(fresh=True)[1] == before[1]


def test_export_names_what_pools_of_airflow_cannot_say(cli: Cli, engine: Engine) -> None:
    block = {
        "pools": {"default_limit": 1, "limits": {"api": 3, "big": {"limit": 2, "granularity": "run"}}},
        "runs": {"max_concurrent_runs": 15, "tag_concurrency_limits": [{"key": "team", "limit": 2}]},
        "ops": {"max_concurrent": 4},
    }
    changes.apply(engine, Concurrency.model_validate(block), expected_version=0)
    note = "the pools: Pools on the default limit are not known by name and not in it"
    wide, same = cli("export", "airflow-pools").stderr, cli("export", "airflow-pools", "--slots", "same").stderr
    assert note in wide
    assert note in same
    assert "no counterpart" not in wide  # Penstock goes on limiting
    for path in (
        "pools.default_limit",
        "runs.max_concurrent_runs",
        "runs.tag_concurrency_limits",
        "ops.max_concurrent",
    ):
        assert f"the pools: no counterpart: concurrency.{path}: " in same
    assert "no counterpart: pool 'big' of granularity run: a pool of Airflow counts tasks, not runs" in same


def test_what_was_exported_changes_nothing_when_imported(cli: Cli, tmp_path: Path, engine: Engine) -> None:
    changes.apply(engine, Concurrency.model_validate({"pools": {"limits": {"api": 3, "db": 2}}}), expected_version=0)
    path = tmp_path / "out.json"
    for slots in ("unlimited", "same"):
        assert cli("export", "airflow-pools", "-o", str(path), "--slots", slots).returncode == 0
        cli("import", "airflow-pools", str(path), "--yes")
        pools = limits(engine)["pools"]["limits"]
        assert {name: pool["limit"] for name, pool in pools.items()} == {"api": 3, "db": 2}
