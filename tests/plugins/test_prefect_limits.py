"""Prefect's limits as pools: what is taken over, what is left out and why, and how its API is asked."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from penstock.errors import ConfigError
from penstock.hooks import plugin_manager
from penstock.hookspecs import ImportedConfiguration
from penstock_plugins.prefect_limits import imported


def limit(name: str, slots: Any, *, decay: float = 0.0, active: bool = True) -> dict[str, Any]:
    """As `prefect gcl ls -o json` writes it."""
    return {
        "id": "7",
        "active": active,
        "name": name,
        "limit": slots,
        "active_slots": 0,
        "slot_decay_per_second": decay,
    }


def tag(name: str, slots: int) -> dict[str, Any]:
    """As `prefect concurrency-limit ls -o json` writes it."""
    return {"id": "8", "tag": name, "concurrency_limit": slots, "active_slots": []}


def read(source: Path | str) -> ImportedConfiguration:
    found = plugin_manager().hook.penstock_import_configuration(kind="prefect-limits", source=str(source), options={})
    assert isinstance(found, ImportedConfiguration)
    return found


def limits(found: ImportedConfiguration) -> dict[str, int]:
    return {name: pool["limit"] for name, pool in found.concurrency["pools"]["limits"].items()}


def test_it_comes_in_by_its_entry_point_and_reads_only_its_kind(tmp_path: Path) -> None:
    file = tmp_path / "limits.json"
    file.write_text(json.dumps([limit("database", 3), limit("closed", 0)]))
    found = read(file)
    assert (limits(found), found.notes) == ({"database": 3, "closed": 0}, ())
    file.write_text(json.dumps(limit("database", 3)))  # of `prefect gcl inspect`
    assert limits(read(file)) == {"database": 3}
    assert plugin_manager().hook.penstock_import_configuration(kind="of-nobody", source=str(file), options={}) is None


def test_tag_limits_become_pools_of_a_name_that_no_global_limit_has() -> None:
    found = imported([limit("db", 3), tag("db", 4), limit("tag:db", 4), tag("none", 0)])
    assert limits(found) == {"db": 3, "tag:db": 4, "tag:none": 0}
    assert found.notes == (
        'tag:db: no tag takes slots of a pool here; put @limited("tag:db") above the tasks that have it.',
        'tag:none: no tag takes slots of a pool here; put @limited("tag:none") above the tasks that have it.',
        "tag:none: with 0 slots Prefect fails such tasks at once; here they wait for a change.",
    )


@pytest.mark.parametrize(
    ("row", "note"),
    [
        (
            limit("rate", 10, decay=0.5),
            "rate: its slots come back at 0.5 a second, which bounds a rate",
        ),
        (
            limit("off", 2, active=False),
            "off: it is not active, so nothing waits for it; `penstock pools",
        ),
        (limit("huge", 10_001), "huge: a limit is at most 10000 here"),
        (limit("two words", 2), "two words: a pool of Penstock has no white space in its name"),
        (tag("table:7", 2), "tag:table:7: a pool of Penstock has no white space in its name"),
        (
            limit("deployment:5-6", 3),
            "deployment:5-6: it bounds runs, and Prefect goes on counting; to",
        ),
        (
            {"name": "wp", "concurrency_limit": 5, "base_job_template": {}},
            "work pool wp: it bounds runs, and Prefect goes on counting; to share it put the flows "
            'under @limited and add {"key": "prefect/work_pool", "value": "wp", "limit": 5} to runs',
        ),
        (
            {"name": "q", "concurrency_limit": 2, "work_pool_id": "1", "work_pool_name": "wp"},
            "work queue wp/q: runs have no tag of their queue",
        ),
    ],
)
def test_what_has_no_counterpart_is_said_with_what_to_do(row: dict[str, Any], note: str) -> None:
    found = imported([row])
    assert limits(found) == {}
    assert found.notes == ()
    (fault,) = found.left_out
    assert str(fault).startswith(note)


def test_a_deployments_limit_is_told_once_with_its_name_and_how_it_collides() -> None:
    deployment = {
        "id": "5-6",
        "name": "nightly",
        "flow_id": "1",
        "global_concurrency_limit": limit("deployment:5-6", 3),
        "concurrency_options": {"collision_strategy": "CANCEL_NEW"},
    }
    found = imported([limit("deployment:5-6", 3), deployment])
    (first,), (second,) = found.left_out, found.notes
    assert '{"key": "prefect/deployment", "value": "nightly", "limit": 3}' in first.message
    assert second.startswith('deployment nightly: for CANCEL_NEW write @limited(on_blocked="skip")')


def test_what_has_no_limit_is_not_told() -> None:
    rows = [
        {"name": "wp", "concurrency_limit": None, "base_job_template": {}},
        {"name": "q", "concurrency_limit": None, "work_pool_id": "1"},
        {"name": "n", "flow_id": "1", "global_concurrency_limit": None, "concurrency_options": None},
    ]
    assert (imported(rows).notes, imported(rows).left_out) == ((), ())


def test_a_list_as_long_as_prefect_makes_them_may_be_cut_off() -> None:
    whole = imported([limit(f"limit{number}", 1) for number in range(99)])
    cut = imported([limit(f"limit{number}", 1) for number in range(100)])
    assert whole.left_out == ()
    (fault,) = cut.left_out
    assert str(fault).startswith("limits beyond these: `prefect gcl ls` lists 100 at most")


def test_every_fault_is_named() -> None:
    with pytest.raises(ConfigError) as raised:
        imported([limit("a", "many"), limit("b", -1), 5, {"x": 1}, limit("c", 1), limit("c", 2), limit("d", True)])
    assert [fault.path for fault in raised.value.faults] == ["a", "b", "entry 3", "entry 4", "c", "d"]
    assert str(raised.value.faults[0]) == "a: limit 'many': a whole number of at least 0 is expected"
    assert str(raised.value.faults[4]) == "c: it is there twice, with 1 and 2 slots"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "not the JSON that"),
        ('"x"', "not what `prefect"),
        (None, "cannot be read: No such file"),
        ("[" * 100_000, "not the JSON that `prefect gcl ls -o json` writes: nested too deeply"),
        ('[{"name": "a", "limit": 1, "limit": 2}]', "the key 'limit' stands twice"),
        (json.dumps([limit("a", 1) | {"slot_decay_per_second": "fast"}]), "entry 1: slot_decay_per_second 'fast' is"),
        (
            json.dumps([{"id": "5", "name": "n", "flow_id": "1", "concurrency_options": [1]}]),
            r"entry 1: concurrency_options \[1\] is not as Prefect writes it",
        ),
    ],
)
def test_a_file_that_is_no_list(tmp_path: Path, text: str | None, fault: str) -> None:
    if text is not None:
        (tmp_path / "limits.json").write_text(text)
    with pytest.raises(ConfigError, match=fault):
        read(tmp_path / "limits.json")


# -- an API; the real one is asked in tests/prefect_integration/test_import.py ----------------------------------------

Answer = Callable[[str, dict[str, Any]], tuple[int, Any]]


@contextmanager
def api(answer: Answer) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server that answers so, and the headers that it was sent."""
    headers: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            headers.append(dict(self.headers))
            status, rows = answer(self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            if status == 302:
                self.send_header("Location", rows)
            self.end_headers()
            self.wfile.write(json.dumps(rows).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/api", headers
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_all_pages_are_asked_for_and_what_is_not_given_out_is_said() -> None:
    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/api/v2/concurrency_limits/filter":
            rows = [limit(f"limit{number}", 1) for number in range(205)]
            return 200, rows[body["offset"] :][: body["limit"]]
        return (403, {}) if "work" in path else (200, [])

    with api(answer) as (url, _):
        found = read(f"{url}/")
    assert len(limits(found)) == 205
    why = "not given out (it answers 403: the credentials must be allowed to read it); look for them yourself"
    assert [str(fault) for fault in found.left_out] == [f"work pools' limits: {why}", f"work queues' limits: {why}"]


@pytest.mark.parametrize(
    ("environment", "header"),
    [
        ({}, None),
        ({"PREFECT_API_KEY": "pnu_secret"}, "Bearer pnu_secret"),
        (
            {"PREFECT_API_KEY": "pnu_secret", "PREFECT_API_AUTH_STRING": "admin:secret"},
            f"Basic {base64.b64encode(b'admin:secret').decode()}",
        ),
    ],
)
def test_it_authenticates_as_prefect_does(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], header: str | None
) -> None:
    for name in ("PREFECT_API_KEY", "PREFECT_API_AUTH_STRING"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with api(lambda *_: (200, [])) as (url, headers):
        read(url)
    assert {each.get("Authorization") for each in headers} == {header}


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ((401, {}), "it answers 401: set PREFECT_API_AUTH_STRING or PREFECT_API_KEY"),
        ((404, {}), "it answers 404: the URL of an API ends in /api"),
        ((500, {}), "it answers 500$"),
        ((200, {"detail": "x"}), "v2/concurrency_limits: a list of limits is expected"),
    ],
)
def test_an_api_that_does_not_tell(monkeypatch: pytest.MonkeyPatch, answer: tuple[int, Any], fault: str) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "pnu_secret")
    with api(lambda *_: answer) as (url, _), pytest.raises(ConfigError, match=fault) as raised:
        read(url)
    assert "secret" not in str(raised.value)


def test_credentials_follow_no_redirect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "pnu_secret")
    with api(lambda *_: (200, [])) as (elsewhere, headers), api(lambda *_: (302, elsewhere)) as (url, _):
        with pytest.raises(ConfigError, match="it answers 302"):
            read(url)
        assert headers == []


def test_an_api_that_is_away_or_named_with_a_password() -> None:
    with pytest.raises(ConfigError, match=r"cannot be asked: .*refused"):
        read("http://127.0.0.1:1/api")
    with pytest.raises(ConfigError, match="belong into PREFECT_API_AUTH_STRING") as raised:
        read("http://admin:secret@127.0.0.1:1/api")
    assert "secret" not in str(raised.value)
