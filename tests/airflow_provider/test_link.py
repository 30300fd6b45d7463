"""The link from a task that waits to who holds its slot: which one, only a page, and never an error of the page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from penstock import changes, connect
from penstock.claim import Claim, ClaimKind
from penstock.config import Concurrency
from penstock.decision import Waiting
from penstock.engine import Engine
from penstock_airflow import installation, links

PAGE, OTHER = "https://prefect.example/runs/7", "https://airflow.example/dags/x"


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """An engine beside; the link finds its store by the settings."""
    url = f"sqlite:///{tmp_path / 'penstock.db'}"
    monkeypatch.setenv("AIRFLOW__PENSTOCK__STORE_URL", url)
    monkeypatch.setattr(links, "_latest", links._Latest())
    monkeypatch.setattr(links, "SNAPSHOT_SECONDS", -1.0)
    for cached in (installation.store_is_configured, installation.installation):
        cached.cache_clear()
    with connect(url) as engine:
        document = {"pools": {"limits": {"database": 1, "api": 1}}, "runs": {"max_concurrent_runs": 1}}
        changes.apply(engine, Concurrency.from_document(document), expected_version=0)
        yield engine
    for cached in (installation.store_is_configured, installation.installation):
        cached.cache_clear()


def holder(engine: Engine, *pools: str, url: str | None, **facts: Any) -> Any:
    return engine.acquire(replace(engine.claim(*pools, **facts), url=url), on_blocked="fail")


def waits(engine: Engine, *pools: str, kind: ClaimKind = ClaimKind.OP, op_id: str | None = "load[3]") -> None:
    claim = Claim(
        kind=kind,
        host="airflow",
        deployment="airflow",
        run_id="etl/monday",
        op_id=op_id,
        pools=dict.fromkeys(pools, 1),
        url="https://airflow.example/waiting",
    )
    assert isinstance(engine.request(claim, ticket=True).step(), Waiting)


def page(task_id: str = "load", map_index: int = 3, run_id: str = "monday") -> str:
    return links.holder_page(SimpleNamespace(dag_id="etl", run_id=run_id, task_id=task_id, map_index=map_index))


def test_it_leads_to_who_holds_the_slot(engine: Engine) -> None:
    holder(engine, "database", url=PAGE, op_id="a")
    holder(engine, "api", url=OTHER, op_id="b")
    waits(engine, "database")
    assert page() == PAGE
    assert (page(map_index=2), page(task_id="other"), page(run_id="tuesday")) == ("", "", "")


def test_a_task_whose_run_waits_leads_to_the_run_that_holds(engine: Engine) -> None:
    engine.acquire(replace(engine.run_claim("sunday"), url=PAGE), on_blocked="fail")
    waits(engine, kind=ClaimKind.RUN, op_id=None)
    assert page() == PAGE


@pytest.mark.parametrize("url", [None, "javascript:alert(1)", "file:///etc/passwd"])
def test_only_a_page_is_linked(engine: Engine, url: str | None) -> None:
    """What the store says was written by another host; where the first holder has no page the next one's is taken."""
    changes.edit(
        engine,
        lambda concurrency: concurrency.with_pool(
            "database", concurrency.pools.limits["database"].model_copy(update={"limit": 2})
        ),
    )
    holder(engine, "database", url=url, op_id="a")
    holder(engine, "database", url=None, op_id="b")
    waits(engine, "database")
    assert page() == ""


def test_a_store_that_is_away_is_no_error_of_the_page(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AIRFLOW__PENSTOCK__STORE_URL", f"sqlite:///{tmp_path / 'nowhere' / 'x.db'}")
    installation.installation.cache_clear()
    assert page() == ""
    assert "no link to who holds the slot" in caplog.text
    caplog.clear()
    monkeypatch.setattr(links._Latest, "_fresh", None)
    assert page() == ""
    assert "did not answer a moment ago" in caplog.text, "it is not asked again for each page"


def test_without_a_store_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "store_is_configured", lambda: False)
    monkeypatch.setattr(links, "_latest", None)
    assert page() == ""


def test_the_plugin_brings_the_link_and_no_listener() -> None:
    from importlib.metadata import entry_points

    (entry_point,) = entry_points(group="airflow.plugins", name="penstock")
    plugin = entry_point.load()
    assert [link.name for link in plugin.global_operator_extra_links] == ["Penstock: who holds the slot"]
    assert not plugin.listeners  # any listener makes Airflow reject DAGs that use end_from_trigger
