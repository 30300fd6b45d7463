"""`[penstock]`: where the store's URL comes from, what a wrong value is told, and that no secret is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from airflow_process import ask
from vault import SECRET

READ = """
import json, os, airflow.settings
from penstock.errors import PenstockError
from penstock_airflow import installation
def told():
    answer = {"configured": installation.store_is_configured()}
    try:
        here = installation.installation()
        return answer | {"deployment": here.deployment, "url": installation.store_url(here)}
    except PenstockError as error:
        return answer | {"error": f"{type(error).__name__}: {error}"}
answers = []
for given in json.loads(os.environ["CASES"]):
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.environ.update(given)
        os.write(writer, json.dumps(told()).encode())
        os._exit(0)
    os.close(writer)
    answers.append(json.loads(open(reader).read()))
print(json.dumps(answers))
"""
URL = "sqlite:////srv/penstock.db"
VAULT = {"AIRFLOW__SECRETS__BACKEND": "vault.Vault"}
FROM_VAULT = f"postgresql://u:{SECRET}@vault/d"


FOUND: dict[str, tuple[dict[str, str], str]] = {
    "variable": ({"AIRFLOW__PENSTOCK__STORE_URL": URL}, URL),
    "penstock's": ({"PENSTOCK_STORE_URL": URL}, URL),
    # The newline that a command prints is not the file's.
    "command": ({"AIRFLOW__PENSTOCK__STORE_URL_CMD": f"echo {URL}"}, URL),
    "secrets backend": (VAULT | {"AIRFLOW__PENSTOCK__STORE_URL_SECRET": "penstock/url"}, FROM_VAULT),
    "connection": (VAULT | {"AIRFLOW__PENSTOCK__CONN_ID": "vaulted"}, f"postgresql://u:{SECRET}@vault:5433/d"),
    "the section before the environment": (
        VAULT | {"AIRFLOW__PENSTOCK__CONN_ID": "vaulted", "PENSTOCK_STORE_URL": URL},
        f"postgresql://u:{SECRET}@vault:5433/d",
    ),
    "the URL wins": ({"AIRFLOW__PENSTOCK__STORE_URL": URL, "AIRFLOW__PENSTOCK__CONN_ID": "nobody"}, URL),
}
FAILING: dict[str, tuple[dict[str, str], str]] = {
    "failing command": (
        {"AIRFLOW__PENSTOCK__STORE_URL_CMD": f"sh -c 'echo {SECRET}; exit 3'"},
        "ConfigError: [penstock] store_url: its command or secrets backend fails (AirflowConfigException)",
    ),
    "failing secrets backend": (
        VAULT | {"AIRFLOW__PENSTOCK__STORE_URL_SECRET": "broken"},
        "ConfigError: [penstock] store_url: its command or secrets backend fails",
    ),
    "no connection": (
        {"AIRFLOW__PENSTOCK__CONN_ID": "nobody"},
        "ConfigError: [penstock] conn_id: Airflow has no connection 'nobody'",
    ),
    "a connection of another type": (
        {"AIRFLOW__PENSTOCK__CONN_ID": "web", "AIRFLOW_CONN_WEB": f"http://u:{SECRET}@host/"},
        "ConfigError: Airflow connection 'web': its type is 'http'; one of penstock, postgres",
    ),
}
NONE = {"none": ({}, "")}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each case is told, in a process of its own."""
    cases = FOUND | FAILING | NONE
    told = ask(READ, tmp_path_factory.mktemp("home"), CASES=json.dumps([given for given, _ in cases.values()]))
    return dict(zip(cases, told, strict=True))


@pytest.mark.parametrize("case", FOUND)
def test_the_stores_url_is_found(answers: dict[str, Any], case: str) -> None:
    assert answers[case] == {"configured": True, "deployment": "airflow", "url": FOUND[case][1]}


@pytest.mark.parametrize("case", FAILING)
def test_what_cannot_be_read_is_told_without_the_secret(answers: dict[str, Any], case: str) -> None:
    """It counts as configured: tasks must fail with this, and not run unlimited."""
    told = answers[case]
    assert told["configured"] is True
    assert FAILING[case][1] in told["error"]
    assert SECRET not in told["error"]


def test_without_a_store_it_is_inactive(answers: dict[str, Any]) -> None:
    assert answers["none"]["configured"] is False
    assert "set one for every component of Airflow" in answers["none"]["error"]


@pytest.mark.parametrize(
    ("line", "url"), [(f"store_url_cmd = echo {URL}", URL), ("store_url_secret = penstock/url", FROM_VAULT)]
)
def test_command_and_secret_are_read_from_the_file_too(tmp_path: Path, line: str, url: str) -> None:
    (tmp_path / "airflow.cfg").write_text(f"[penstock]\n{line}\n[secrets]\nbackend = vault.Vault\n")
    (told,) = ask(READ, tmp_path, CASES="[{}]")
    assert told["url"] == url


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("short_block_seconds", "soon", "[penstock] short_block_seconds: 'soon' found; a number is expected"),
        ("session_ttl_seconds", "0", "[penstock] session_ttl_seconds: 0: seconds from 1 to 3600 are expected"),
        ("min_deferral_seconds", "-1", "[penstock] min_deferral_seconds: -1: seconds from 0 to 3600 are expected"),
    ],
)
def test_a_wrong_value_is_told_with_the_option(
    monkeypatch: pytest.MonkeyPatch, option: str, value: str, error: str
) -> None:
    from penstock.errors import ConfigError
    from penstock_airflow.installation import Installation

    monkeypatch.setenv(f"AIRFLOW__PENSTOCK__{option.upper()}", value)
    with pytest.raises(ConfigError) as raised:
        Installation.configured()
    assert str(raised.value) == error


@pytest.mark.parametrize(("value", "read_as"), [("True", True), ("f", False), ("1", True), ("", None), ("yes", None)])
def test_a_switch_is_read_as_airflow_reads_it(
    monkeypatch: pytest.MonkeyPatch, value: str, read_as: bool | None
) -> None:
    from penstock.errors import ConfigError
    from penstock_airflow.configuration import Configuration

    monkeypatch.setenv("AIRFLOW__PENSTOCK__SWITCH", value)
    if value == "yes":
        with pytest.raises(ConfigError, match="'yes' found; True or False is expected"):
            Configuration().getboolean("penstock", "switch", fallback=True)
    elif read_as is None:
        assert Configuration().getboolean("penstock", "switch", fallback=True) is True
    else:
        assert Configuration().getboolean("penstock", "switch", fallback=not read_as) is read_as


def test_airflows_own_listing_hides_the_url(tmp_path: Path) -> None:
    code = (
        "import json; from airflow.configuration import conf; from airflow.providers_manager import ProvidersManager; "
        "ProvidersManager().initialize_providers_configuration(); "
        "print(json.dumps(conf.as_dict(display_sensitive=False)['penstock']))"
    )
    given = {"AIRFLOW__PENSTOCK__STORE_URL": FROM_VAULT, "AIRFLOW__PENSTOCK__DEPLOYMENT": "here"}
    told = ask(code, tmp_path, **given)
    assert told["store_url"] == "< hidden >"
    assert SECRET not in str(told)
