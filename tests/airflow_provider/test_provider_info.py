"""What Airflow reads about the provider."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from importlib.metadata import distribution, entry_points
from importlib.resources import files

from penstock_airflow.provider_info import get_provider_info


def test_it_fits_airflows_schema_and_the_distribution() -> None:
    import jsonschema

    schema = json.loads(files("airflow").joinpath("provider_info.schema.json").read_text())
    info = get_provider_info()
    jsonschema.validate(info, schema)
    assert info.keys() <= schema["properties"].keys() | {"cli"}  # which Airflow 3.1 passes over
    assert info["package-name"] == distribution("penstock").metadata["Name"]


def test_everything_it_names_is_there() -> None:
    info = get_provider_info()
    modules = [name for kind in ("hooks", "triggers") for one in info[kind] for name in one["python-modules"]]
    objects = [one["hook-class-name"] for one in info["connection-types"]] + info["extra-links"] + info["cli"]
    for name in [*modules, *objects]:
        assert pkgutil.resolve_name(name) is not None
    assert {one["integration-name"] for kind in ("hooks", "triggers") for one in info[kind]} == {
        one["integration-name"] for one in info["integrations"]
    }


def test_the_commands_are_airflows() -> None:
    from penstock_airflow.cli import get_cli_commands

    (command,) = get_cli_commands()
    assert (command.name, command.func.__name__) == ("penstock", "run")


def test_every_option_has_the_default_that_the_code_uses() -> None:
    from penstock_airflow import page
    from penstock_airflow.installation import Installation

    options = get_provider_info()["config"]["penstock"]["options"]
    of_the_api_server = {"page"}  # no task fails for what it does not need
    assert set(options) == set(Installation.__dataclass_fields__) | of_the_api_server
    assert options["page"]["default"] == str(page.is_wanted())
    bare = Installation(store_url=None, deployment="airflow")
    floats = {name for name, option in options.items() if option["type"] == "float"}
    assert floats == {name for name in options if name.endswith("_seconds")}
    for name in floats:
        assert float(options[name]["default"]) == getattr(bare, name)
    assert options["waiting"]["default"] == bare.waiting
    assert options["exempt_setup_teardown"]["default"] == str(bare.exempt_setup_teardown)
    for name in ("waiting_by_pool", "release_while_deferred"):
        assert (options[name]["default"], getattr(bare, name)) == ("", ())
    assert options["store_url"]["sensitive"]


def test_the_entry_points_are_there() -> None:
    (provider,) = [e for e in entry_points(group="apache_airflow_provider") if e.value.startswith("penstock_airflow")]
    assert provider.load()() == get_provider_info()
    (policy,) = entry_points(group="airflow.policy", name="penstock")
    assert policy.value == "penstock_airflow.policy"


def test_its_module_imports_nothing_heavy() -> None:
    code = (
        "import sys; before = set(sys.modules); import penstock_airflow.provider_info; "
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(loaded - sys.stdlib_module_names))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "['penstock_airflow']"
