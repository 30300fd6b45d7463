"""The settings of a Prefect installation, and the engine that follows from them. No server here."""

from __future__ import annotations

from pathlib import Path

import pytest
from penstock.errors import ClaimError, StoreUnavailable
from penstock_prefect import asking, installation, limited, slots
from penstock_prefect.settings import PenstockSettings, settings
from prefect.settings import PREFECT_API_URL, temporary_settings
from pydantic import ValidationError

PREFIX = "PREFECT_INTEGRATIONS_PENSTOCK_"


def test_what_is_set_here_comes_before_what_the_environment_says_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_ENFORCEMENT", "observe")
    monkeypatch.setenv("PENSTOCK_ON_STORE_ERROR", "fail")
    monkeypatch.setenv("PENSTOCK_STORE_URL", "sqlite:////general.db")
    assert settings().figures.enforcement == "observe"
    assert settings().configured_store_url == "sqlite:////general.db"
    for name, value in {
        "ENFORCEMENT": "enforce",
        "STORE_URL": "sqlite:////own.db",
        "STORE_RETRY_SECONDS": "5",
        "SESSION_TTL_SECONDS": "7",
        "POOL_PER_OP": "nightly.*, load",
        "DEPLOYMENT": "blue",
    }.items():
        monkeypatch.setenv(PREFIX + name, value)
    here = settings()
    figures = here.figures
    assert (here.configured_store_url, here.deployment_name) == ("sqlite:////own.db", "blue")
    assert (figures.enforcement, figures.on_store_error) == ("enforce", "fail")
    assert (figures.store_retry_seconds, figures.session_ttl_seconds) == (5, 7)
    assert figures.pool_per_op == ("nightly.*", "load")
    assert "own.db" not in repr(here)


@pytest.mark.parametrize(("name", "value"), [("ENFORCEMENT", "sometimes"), ("SESSION_TTL_SECONDS", "0")])
def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(ValidationError, match=value):
        settings()


def test_every_setting_says_what_it_is_for() -> None:
    assert all(field.description for field in PenstockSettings.model_fields.values())


def test_no_gate_ever_makes_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new one would have no limits: where a volume is not mounted, every task would run unlimited."""
    missing = tmp_path / "penstock.db"
    monkeypatch.setenv(PREFIX + "STORE_URL", f"sqlite:///{missing}")
    monkeypatch.setenv(PREFIX + "ON_STORE_ERROR", "fail")
    with pytest.raises(StoreUnavailable, match="penstock db upgrade"), slots("a"):
        pass
    assert not missing.exists()


def test_where_enforcement_is_off_the_store_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PREFIX + "STORE_URL", f"sqlite:///{tmp_path / 'missing.db'}")
    monkeypatch.setenv(PREFIX + "ENFORCEMENT", "off")
    with slots("a", 2) as lease:
        assert lease is None
    assert limited("a")(lambda: 3)() == 3


def test_a_pool_for_each_op_that_matches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PREFIX + "STORE_URL", f"sqlite:///{tmp_path / 'missing.db'}")
    monkeypatch.setenv(PREFIX + "POOL_PER_OP", "nightly.*")
    engine = installation.engine()
    assert engine is not None
    assert engine.request(engine.claim(step="nightly.query")).claim.pools == {"op/prefect/nightly.query": 1}
    assert engine.request(engine.claim(step="hourly.query")).claim.pools == {}


def test_a_server_that_is_nobody_elses_has_no_identity() -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert asking.own_server() is None
    cloud = "https://api.prefect.cloud/api/accounts/a/workspaces/w"
    with temporary_settings({PREFECT_API_URL: cloud}):
        assert asking.own_server() == cloud
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        assert asking.own_server() is None, "it does not answer: nothing fails for that"


def test_a_limit_on_the_tasks_of_a_run_is_no_word_of_a_task() -> None:
    from prefect import task

    with pytest.raises(ClaimError, match="say it of the flow"):
        limited(max_concurrent=1)(task(lambda: None))
