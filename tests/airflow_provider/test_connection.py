"""The connection type: from fields to a URL, its form, its test, and an engine for a task's own code."""

from __future__ import annotations

import json
import traceback
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from penstock.errors import ConfigError, StoreUnavailable
from penstock_airflow import asking, connections
from penstock_airflow.provider_info import CONNECTION_TYPE
from sqlalchemy.engine import make_url

SECRET = "p@ss/w:rd%"


def connection(conn_type: str = "penstock", extra: dict[str, Any] | None = None, **fields: Any) -> Any:
    values = dict.fromkeys(("host", "port", "login", "password", "schema")) | fields
    return SimpleNamespace(conn_id="limits", conn_type=conn_type, extra_dejson=extra or {}, **values)


def url_of(*arguments: Any, **fields: Any) -> str:
    return connections.url_of(connection(*arguments, **fields)).render_as_string(hide_password=False)


SERVER = {"host": "db.example", "schema": "limits", "login": "me", "password": SECRET}


def test_a_server_of_each_kind() -> None:
    password = "p%40ss%2Fw%3Ard%25"
    assert url_of(**SERVER) == f"postgresql://me:{password}@db.example/limits"
    assert url_of(extra={"backend": "mysql"}, port=3307, **SERVER) == f"mysql://me:{password}@db.example:3307/limits"
    assert make_url(url_of(**SERVER)).password == SECRET
    extra = {"backend": "postgresql", "options": "sslmode=require&connect_timeout=5"}
    assert url_of(extra=extra, host="db", schema="d") == "postgresql://db/d?connect_timeout=5&sslmode=require"
    assert url_of("postgres", host="db", schema="d", login="me") == "postgresql://me@db/d"
    assert url_of("mysql", {"charset": "utf8"}, host="db", schema="d") == "mysql://db/d"


def test_a_file() -> None:
    assert url_of(extra={"backend": "sqlite"}, host="/srv/penstock.db") == "sqlite:////srv/penstock.db"
    assert url_of("sqlite", host="/srv/a b.db") == "sqlite:////srv/a b.db"


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"conn_type": "http"}, "its type is 'http'; one of penstock, postgres, postgresql, mysql, sqlite is expected"),
        ({"extra": {"backend": "oracle"}}, "backend 'oracle': one of postgresql, mysql, sqlite is expected"),
        ({"schema": "d"}, "the database server is missing; write it into the field host"),
        ({"host": "db"}, "the database's name is missing; write it into the field schema"),
        ({"extra": {"backend": "sqlite"}}, "the file's path is missing; write it into the field host"),
        ({"host": "db", "schema": "d", "extra": {"options": "sslmode"}}, "options: NAME=VALUE, joined by &"),
    ],
)
def test_what_names_no_store_is_told(given: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError) as raised:
        url_of(password=SECRET, **given)
    assert str(raised.value).startswith(f"Airflow connection 'limits': {fault}")
    assert SECRET not in str(raised.value)


def test_an_airflow_that_does_not_answer_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task waits for it as for the store itself; a connection that is not there is a mistake, and told at once."""

    def away(_: str) -> Any:
        raise OSError(f"no line to the API server, was asking with {SECRET}")

    monkeypatch.setattr(asking, "connection", away)
    with pytest.raises(StoreUnavailable, match=r"does not tell its connection 'limits' now \(OSError\)") as raised:
        connections.store_url("limits")
    assert SECRET not in str(raised.value)

    def nobody(conn_id: str) -> Any:
        raise asking.not_found()(conn_id)

    monkeypatch.setattr(asking, "connection", nobody)
    with pytest.raises(ConfigError, match=r"\[penstock\] conn_id: Airflow has no connection 'limits'"):
        connections.store_url("limits")


# -- the hook ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """On an SQLite store that is not there yet."""
    from penstock_airflow.hook import PenstockHook

    value = {"conn_type": "penstock", "host": str(tmp_path / "penstock.db"), "extra": {"backend": "sqlite"}}
    monkeypatch.setenv("AIRFLOW_CONN_LIMITS", json.dumps(value))
    return PenstockHook("limits")


def test_the_test_says_what_to_do(hook: Any) -> None:
    good, message = hook.test_connection()
    assert not good
    assert "the store's file is not there yet; `penstock db upgrade` makes it" in message
    import penstock

    penstock.connect(hook.get_uri()).close()
    good, message = hook.test_connection()
    assert good
    assert message.startswith(f"{hook.get_uri()} (from this connection): SQLite")


def test_the_engine_holds_slots(hook: Any) -> None:
    import penstock

    penstock.connect(hook.get_uri()).close()
    with hook.get_conn() as engine, engine.hold("database") as lease:
        assert lease.fences.keys() == {"pool:database"}


def test_the_hook_is_that_of_the_connection_type(hook: Any) -> None:
    assert f"{type(hook).__module__}.{type(hook).__qualname__}" == CONNECTION_TYPE["hook-class-name"]
    assert (hook.conn_type, hook.hook_name) == (CONNECTION_TYPE["connection-type"], CONNECTION_TYPE["hook-name"])
    assert tuple(CONNECTION_TYPE["conn-fields"]["backend"]["schema"]["enum"]) == connections.BACKENDS


def test_the_form_fits_airflows_schema_and_3_1_is_told_the_same(hook: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import jsonschema

    schema = json.loads(files("airflow").joinpath("provider.yaml.schema.json").read_text())
    jsonschema.validate(CONNECTION_TYPE, schema["properties"]["connection-types"]["items"])
    behaviour = hook.get_ui_field_behaviour()
    jsonschema.validate(
        behaviour, json.loads(files("airflow").joinpath("customized_form_field_behaviours.schema.json").read_text())
    )
    assert behaviour["relabeling"] == CONNECTION_TYPE["ui-field-behaviour"]["relabeling"]

    def field(label: str, **words: Any) -> dict[str, Any]:
        return {"label": label, **words}

    fakes = {"StringField": field}, {"any_of": list}
    monkeypatch.setitem(__import__("sys").modules, "wtforms", SimpleNamespace(**fakes[0]))
    monkeypatch.setitem(__import__("sys").modules, "wtforms.validators", SimpleNamespace(**fakes[1]))
    widgets = hook.get_connection_form_widgets()
    assert widgets.keys() == CONNECTION_TYPE["conn-fields"].keys()
    assert widgets["backend"]["validators"] == [list(connections.BACKENDS)]
    assert widgets["backend"]["default"] == "postgresql"


@pytest.mark.parametrize("options", ["", "sslmode=verify-full&sslrootcert=/nowhere", "password=p%40ss%2Fw%3Ard%25"])
def test_a_store_that_is_away_is_told_without_the_password(
    options: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from penstock_airflow.hook import PenstockHook

    value = {"conn_type": "penstock", "host": "127.0.0.1", "port": 1, "schema": "limits", "login": "me"}
    password = {} if "password" in options else {"password": SECRET}
    monkeypatch.setenv("AIRFLOW_CONN_LIMITS", json.dumps({**value, **password, "extra": {"options": options}}))
    caplog.set_level("DEBUG")
    good, message = PenstockHook("limits").test_connection()
    assert not good
    with pytest.raises(StoreUnavailable) as away, PenstockHook("limits").get_conn() as engine:
        engine.snapshot()
    told = "".join(traceback.format_exception(away.value))
    for text in (message, told, caplog.text):
        assert SECRET not in text
        assert "p%40ss" not in text
