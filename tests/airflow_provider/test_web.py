"""The entrance to the concurrency page: whom Airflow knows, what it lets them do, and when the page is there at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow_process import ask
from fastapi import FastAPI
from fastapi.testclient import TestClient
from penstock import changes, connect
from penstock.config import Concurrency
from penstock.engine import Engine
from penstock_airflow import compatibility, installation, page, web

HTML = {"Accept": "text/html"}


class User(SimpleNamespace):
    """As far as the page asks."""

    def get_id(self) -> str:
        return f"id of {self.name}"

    def get_name(self) -> str:
        return str(self.name)


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """The store of the page, with one limit."""
    with connect(f"sqlite:///{tmp_path / 'penstock.db'}") as engine:
        changes.apply(engine, Concurrency.from_document({"pools": {"limits": {"database": 2}}}), expected_version=0)
        monkeypatch.setattr(installation, "engine", lambda: engine)
        yield engine


class Airflow:
    """Airflow's answers about one user, and the page as it is mounted there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.user: Any = None
        self.methods: set[str] = set()
        self.asked: list[str] = []

        async def signed_in(request: Any) -> Any:
            return self.user

        monkeypatch.setattr(compatibility, "signed_in", signed_in)
        monkeypatch.setattr(compatibility, "_may", lambda method, user: method in self.methods)
        monkeypatch.setattr(compatibility, "derived_secret", lambda purpose: b"secret")
        app = FastAPI(root_path="/airflow")
        app.mount(page.PREFIX, web.Entrance())
        self.client = TestClient(app, base_url="http://airflow.example", follow_redirects=False)

    def is_asked_by(self, user: User | None, *methods: str) -> TestClient:
        self.user, self.methods = user, set(methods)
        return self.client


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> Airflow:
    return Airflow(monkeypatch)


def test_who_is_not_signed_in_is_sent_to_airflows_login(engine: Engine, airflow: Airflow) -> None:
    client = airflow.is_asked_by(None)
    answer = client.get("/airflow/penstock/limit?key=pool%3Adatabase", headers=HTML)
    assert answer.status_code == 303
    assert answer.headers["location"].endswith(
        "api/v2/auth/login?next=http%3A%2F%2Fairflow.example%2Fairflow%2Fpenstock%2Flimit%3Fkey%3Dpool%253Adatabase"
    )
    for method, path in [("GET", "/live"), ("GET", "/api/limits"), ("POST", "/change"), ("POST", "/free")]:
        content = {"Content-Type": "application/x-www-form-urlencoded"}
        assert client.request(method, f"/airflow/penstock{path}", headers=content).status_code == 401, path


def test_who_may_not_see_pools_sees_nothing(engine: Engine, airflow: Airflow) -> None:
    answer = airflow.is_asked_by(User(name="guest"), "POST", "PUT", "DELETE").get("/airflow/penstock/", headers=HTML)
    assert answer.status_code == 401
    assert "database" not in answer.text


@pytest.mark.parametrize("missing", ["POST", "PUT", "DELETE"])
def test_who_may_edit_pools_only_in_part_looks(engine: Engine, airflow: Airflow, missing: str) -> None:
    allowed = {"GET", "POST", "PUT", "DELETE"}
    shown = airflow.is_asked_by(User(name="vera"), *allowed - {missing}).get("/airflow/penstock/").text
    assert "pool:database" in shown
    assert "read-only" in shown
    assert "read-only" not in airflow.is_asked_by(User(name="ada"), *allowed).get("/airflow/penstock/").text


def test_a_stream_of_news_ends_by_itself(engine: Engine, airflow: Airflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or an API server that is to stop would wait for every page that somebody has open."""
    monkeypatch.setattr(web, "STREAM_SECONDS", 0.2)
    answer = airflow.is_asked_by(User(name="vera"), "GET").get("/airflow/penstock/live")
    assert answer.text.startswith("retry: 1000")


def test_links_begin_with_where_airflow_has_mounted_it(engine: Engine, airflow: Airflow) -> None:
    answer = airflow.is_asked_by(User(name="vera"), "GET").get("/airflow/penstock/")
    assert 'href="/airflow/penstock/limit?key=pool%3Adatabase"' in answer.text
    assert "frame-ancestors 'self'" in answer.headers["content-security-policy"]
    assert "x-frame-options" not in answer.headers


def test_a_store_that_is_not_there_is_told_to_those_who_are_signed_in(
    airflow: Airflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cached in (installation.store_is_configured, installation.installation):
        cached.cache_clear()
    monkeypatch.delenv("AIRFLOW__PENSTOCK__STORE_URL", raising=False)
    monkeypatch.delenv("PENSTOCK_STORE_URL", raising=False)
    monkeypatch.setattr(installation, "_engines", {})
    answer = airflow.is_asked_by(User(name="vera"), "GET").get("/airflow/penstock/")
    assert (answer.status_code, "no store_url and no conn_id" in answer.text) == (503, True)
    answer = airflow.is_asked_by(None).get("/airflow/penstock/")
    assert (answer.status_code, answer.text) == (503, "penstock: not signed in\n")
    for cached in (installation.store_is_configured, installation.installation):
        cached.cache_clear()


OFFERED = """
import json, sys
from penstock_airflow.plugin import PenstockPlugin as plugin
heavy = [name for name in ("penstock_airflow.web", "penstock.web", "fastapi", "jinja2") if name in sys.modules]
print(json.dumps([len(plugin.fastapi_apps), [view["href"] for view in plugin.external_views], heavy]))
"""


@pytest.mark.parametrize(("setting", "offered"), [({}, True), ({"AIRFLOW__PENSTOCK__PAGE": "False"}, False)])
def test_the_plugin_offers_it_unless_it_is_switched_off_and_loads_none_of_it(
    tmp_path: Path, setting: dict[str, str], offered: bool
) -> None:
    apps, links, heavy = ask(OFFERED, tmp_path, **setting)
    assert (apps, links) == ((1, ["penstock/"]) if offered else (0, []))
    assert not {"penstock_airflow.web", "penstock.web"} & set(heavy)


def test_it_is_not_offered_where_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    assert page.is_offered()
    monkeypatch.setenv("AIRFLOW__PENSTOCK__PAGE", "perhaps")
    assert not page.is_offered()
    monkeypatch.delenv("AIRFLOW__PENSTOCK__PAGE")
    monkeypatch.setattr(page, "NEEDED", ("fastapi", "no_such_package"))
    assert (page.missing(), page.is_offered()) == (["no_such_package"], False)


TOKEN = """
import json
from penstock.web.access import Visitor, form_token
from penstock_airflow.web import AirflowAccess
print(json.dumps([form_token(AirflowAccess(), Visitor("x", session=f"airflow:{name}")) for name in ("ada", "vera")]))
"""


def test_the_token_of_a_form_is_good_in_every_api_server_and_for_its_user_alone(tmp_path: Path) -> None:
    first, again = (ask(TOKEN, tmp_path, AIRFLOW__API__SECRET_KEY="the key of this installation") for _ in range(2))
    assert first == again
    assert first[0] != first[1]
    assert ask(TOKEN, tmp_path, AIRFLOW__API__SECRET_KEY="another") != first
