"""The events of a real engine as log records, and as lines of JSON."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from configuring import configure
from penstock.decision import Reason
from penstock.errors import WaitTimeout
from penstock_plugins.logging import JsonFormatter

OF_EVERY_CLAIM = {
    "claim_id",
    "claim_kind",
    "host",
    "deployment",
    "run_id",
    "op_id",
    "attempt",
    "pools",
    "tag_keys",
    "priority",
    "url",
}


@pytest.fixture
def events(caplog: pytest.LogCaptureFixture) -> Any:
    """The fields of the events so far, as the formatter writes them."""
    caplog.set_level(logging.INFO, "penstock.events")

    def read() -> list[dict[str, Any]]:
        records = [record for record in caplog.records if record.name == "penstock.events"]
        return [json.loads(JsonFormatter().format(record)) for record in records]

    return read


def test_the_way_of_a_claim(new_engine: Any, events: Any) -> None:
    engine = new_engine()
    configure(engine, pools={"limits": {"a": 1}})
    held = engine.claim("a", "b:2", op_id="first", tags={"token": "secret"}, priority=3)
    with engine.acquire(held), pytest.raises(WaitTimeout):
        engine.acquire(engine.claim("a", op_id="second"), wait_timeout_seconds=0.1)
    changed, granted, waiting, refused, released = events()
    assert (changed["event"], changed["limits"], changed["capacity"]) == ("limit_changed", ["pool:a"], 1)
    assert (
        granted.items()
        >= {
            "event": "granted",
            "level": "INFO",
            "logger": "penstock.events",
            "claim_id": held.claim_id,
            "claim_kind": "op",
            "host": "process",
            "deployment": "process",
            "run_id": None,
            "op_id": "first",
            "attempt": 1,
            "pools": ["a:1", "b:2"],
            "tag_keys": ["token"],
            "priority": 3,
            "limits": ["pool:a", "pool:b"],
        }.items()
    )
    assert waiting["message"] == "process/process second waits for pool:a"
    assert (waiting["event"], waiting["limits"]) == ("waiting", ["pool:a"])
    assert (refused["event"], refused["why"], refused["limits"]) == ("refused", "timed_out", ["pool:a"])
    assert (released["event"], released["claim_id"]) == ("released", held.claim_id)
    assert released["held_seconds"] >= 0.1
    for event in (granted, waiting, released):
        assert event.keys() >= OF_EVERY_CLAIM
        assert all(isinstance(value, str | int | float | list | None) for value in event.values()), "flat"
    assert "secret" not in json.dumps(events())


def test_lost_expired_and_refused(new_engine: Any, events: Any) -> None:
    engine = new_engine()
    lease = engine.acquire(engine.claim("a", op_id="o"))
    engine.session_is_gone(lease.session_id)
    claim = engine.claim("a", run_id="r")
    engine.hook.penstock_expired(claim=claim, held_seconds=2.0, reason="its session ran out")
    engine.hook.penstock_refused(claim=claim, reasons=(Reason("pool:a", 1, 1, 1),), why="skipped", waited_seconds=0.0)
    lost, expired, refused = events()[-3:]
    assert (lost["event"], lost["level"], lost["claim_id"]) == ("lost", "WARNING", lease.claim_id)
    assert (expired["event"], expired["held_seconds"], expired["reason"]) == ("expired", 2.0, "its session ran out")
    assert (refused["event"], refused["why"], refused["limits"]) == ("refused", "skipped", ["pool:a"])
    assert refused["message"] == "process/process r refused (skipped) for pool:a"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://user:secret@host.example:8080/runs/1?token=secret#secret", "https://host.example:8080/runs/1"),
        ("https://[secret", None),
        (None, None),
    ],
)
def test_no_secret_of_a_url_is_told(new_engine: Any, events: Any, url: str | None, told: str | None) -> None:
    engine = new_engine()
    engine.acquire(engine.claim("a", url=url)).release()
    assert [event["url"] for event in events()] == [told, told]


def test_an_error_is_one_line_of_json() -> None:
    try:
        raise RuntimeError("no room")
    except RuntimeError:
        record = logging.LogRecord("x", logging.ERROR, __file__, 1, "it %s", ("failed",), sys.exc_info())
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == "it failed"
    assert json.loads(line)["exception"].endswith("RuntimeError: no room")


def test_json_lines_by_the_environment(tmp_path: Path) -> None:
    """Through the installed entry point: the real command line, nothing else set."""
    store = f"sqlite:///{tmp_path / 'penstock.db'}"
    command = [sys.executable, "-m", "penstock", "--store", store, "run", "--pool", "a", "--", "true"]
    plain = os.environ | {"PENSTOCK_LOG_JSON": ""}
    done = subprocess.run(command, env=plain, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    done = subprocess.run(command, env=plain | {"PENSTOCK_LOG_JSON": "1"}, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["event"] for line in lines] == ["granted", "released"]
    assert lines[0]["time"].endswith("Z")
