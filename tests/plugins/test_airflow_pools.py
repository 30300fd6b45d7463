"""Airflow's pools as limits: what is taken over, what is left out and said, and every fault together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from penstock.errors import ConfigError
from penstock.hooks import plugin_manager
from penstock.hookspecs import ImportedConfiguration
from penstock_plugins.airflow_pools import imported


def pool(slots: Any, description: str = "", *, include_deferred: bool = True) -> dict[str, Any]:
    return {"slots": slots, "description": description, "include_deferred": include_deferred}


def read(path: Path, **options: str) -> ImportedConfiguration:
    found = plugin_manager().hook.penstock_import_configuration(kind="airflow-pools", source=str(path), options=options)
    assert isinstance(found, ImportedConfiguration)
    return found


def test_it_comes_in_by_its_entry_point_and_reads_only_its_kind(tmp_path: Path) -> None:
    file = tmp_path / "pools.json"
    file.write_text(json.dumps({"api": pool(3, "the API"), "default_pool": pool(128), "closed": pool(0)}))
    found = read(file, default_pool="true")
    limits = {"api": {"limit": 3, "description": "the API"}, "default_pool": {"limit": 128}, "closed": {"limit": 0}}
    assert (found.concurrency, found.notes, found.left_out) == ({"pools": {"limits": limits}}, (), ())
    found = read(file)
    assert found.concurrency["pools"]["limits"].keys() == {"api", "closed"}
    assert found.notes[0].startswith("default_pool is left out")
    assert plugin_manager().hook.penstock_import_configuration(kind="of-nobody", source=str(file), options={}) is None


def test_what_has_no_counterpart_is_said() -> None:
    found = imported(
        {
            "free": pool(-1),
            "huge": pool(10_001),
            "two words": pool(2),
            "end:7": pool(2),
            "most": pool(10_000),
            "freed": pool(2, include_deferred=False),
        },
        default_pool=False,
    )
    assert found.concurrency["pools"]["limits"].keys() == {"most", "freed"}
    unlimited, freed = found.notes
    assert unlimited == "Unlimited in Airflow, or above 10000 slots, so their limits here stay as they are: free, huge."
    assert [fault.path for fault in found.left_out] == ["pool 'two words' of 2 slots", "pool 'end:7' of 2 slots"]
    assert all("`penstock pools set NAME 2`" in fault.message for fault in found.left_out)
    assert freed.startswith("In Airflow a task that defers gives its slots back; here it keeps them")
    assert freed.endswith(": freed.")


def test_every_fault_is_named() -> None:
    with pytest.raises(ConfigError) as raised:
        imported({"a": pool("many"), "b": pool(True), "c": pool(-2), "d": 5, "good": pool(1)}, default_pool=False)
    assert [fault.path for fault in raised.value.faults] == ["a", "b", "c", "d"]
    assert str(raised.value.faults[0]) == "a: slots 'many': a whole number of at least -1 is expected"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "not the JSON that"),
        ("[]", "not what `airflow pools export` writes: pool names with their slots are expected"),
        (None, "cannot be read: No such file"),
        ('{"a": {"slots": 1}, "a": {"slots": 2}}', "the key 'a' stands twice"),
        ('{"a": ' * 100_000, "nested too deeply"),
    ],
)
def test_a_file_that_is_no_export(tmp_path: Path, text: str | None, fault: str) -> None:
    if text is not None:
        (tmp_path / "pools.json").write_text(text)
    with pytest.raises(ConfigError, match=fault):
        read(tmp_path / "pools.json")
