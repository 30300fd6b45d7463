"""The JSON API holds to its own description, whatever it is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from penstock.engine import Engine
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

Configure = Callable[..., None]
OPERATIONS = {
    ("GET", "/api/limits"),
    ("GET", "/api/limit"),
    ("PUT", "/api/limit"),
    ("GET", "/api/limit/holders"),
    ("GET", "/api/limit/queue"),
    ("GET", "/api/limit/past"),
    ("GET", "/api/limit/changes"),
    ("POST", "/api/limit/plan"),
    ("GET", "/api/claims"),
    ("POST", "/api/free"),
    ("POST", "/api/free/plan"),
}


def crowd(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1, "b": 2}}, runs={"max_concurrent_runs": 3})
    engine.acquire(engine.claim("a", run_id="holds", tags={"team": "x"}))
    engine.request(engine.claim("a", "b", run_id="waits", op_id="load")).step()


@pytest.mark.parametrize("store_kind", ["sqlite"], indirect=True)
@pytest.mark.timeout(600)
def test_whatever_is_asked_the_answer_is_as_described(
    client: httpx.Client, engine: Engine, configure: Configure, authorized: dict[str, str]
) -> None:
    # A key of the right form may name nothing that can be set: that is a 400, which no schema can say.
    crowd(engine, configure)
    schema = schemathesis.openapi.from_url(str(client.base_url.join("/api/openapi.json")))
    asked = set()
    for described in schema.get_all_operations():
        operation = described.ok()
        asked.add((operation.method.upper(), operation.path))
        for mode in GenerationMode:

            @settings(max_examples=5, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy(mode))
            def ask(case: Any) -> None:
                answer = case.call(headers=authorized)
                if answer.status_code != 413:  # what it makes up may be large
                    case.validate_response(answer, excluded_checks=[positive_data_acceptance])

            ask()
    assert asked == OPERATIONS


def test_the_answers_on_every_store(client: httpx.Client, engine: Engine, configure: Configure) -> None:
    crowd(engine, configure)
    limits = client.get("/api/limits").json()
    assert [(one["key"], one["held"], one["waiting"], one["capacity"]) for one in limits["limits"]] == [
        ("pool:a", 1, 1, 1),
        ("pool:b", 0, 1, 2),
        ("runs", 0, 0, 3),
    ]
    assert limits["limits"][0]["longest_wait_seconds"] >= 0
    (waits,) = client.get("/api/limit/queue?key=pool:a").json()["claims"]
    assert (waits["run_id"], waits["place"], waits["state"]) == ("waits", 1, "waiting")
    (bar,) = waits["barred_by"]
    assert (bar["limit"], bar["held"], bar["capacity"], bar["needed"], bar["ahead"]) == ("pool:a", 1, 1, 1, 0)
    assert bar["holders"] == [{"label": "process/process holds", "url": None}]
    (holds,) = client.get("/api/limit/holders?key=pool:a").json()["claims"]
    assert (holds["slots"], holds["tags"], len(holds["processes"])) == ({"pool:a": 1}, {"team": "x"}, 1)
    assert client.get("/api/claims", params={"q": "team=x"}).json()["count"] == 1
    assert client.get("/api/limit/past?key=pool:a").json()["complete"] is True
    assert client.get("/api/limit/changes?key=pool:a").json()["changes"][0]["capacity"] == 1
    assert client.get("/api/limit?key=pool:none").status_code == 404
    assert client.get("/api/limits?most=1000").status_code == 422
    assert client.get("/api/none").json() == {"detail": "there is no such page"}
