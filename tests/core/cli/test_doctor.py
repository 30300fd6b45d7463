"""`penstock doctor`: each part is named, with its state; what is not sound has its remedy on the line."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from penstock.claim import Claim
from penstock.engine import Engine
from penstock.errors import ClaimError
from penstock.settings import ENVIRONMENT, Settings
from penstock.store import tables as t
from penstock.store.sql import SqlStore
from penstock.store.tables import REVISION
from situations import CALM, SECOND, Configure, NewEngine, queued
from sqlalchemy import update

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
on_sql = pytest.mark.parametrize("store_kind", ["sqlite", "postgresql", "mariadb"], indirect=True)
on_sqlite = pytest.mark.parametrize("store_kind", ["sqlite"], indirect=True)
STORE_PARTS = ["store", "wake-ups", "clock", "configuration", "installations", "sessions", "claims", "circles"]
STORE_PARTS += ["tickets"]


@pytest.fixture
def engine(new_engine: NewEngine) -> Engine:
    return new_engine(settings=CALM)


@pytest.fixture
def doctor(cli: Cli) -> Callable[..., Any]:
    """The parts by name, after a look at the exit code."""

    def examine(expected: int = 0) -> dict[str, Any]:
        done = cli("doctor", "--json")
        assert done.returncode == expected, done.stdout
        told = json.loads(done.stdout)
        assert told["ok"] is (expected == 0)
        return {part["part"]: part for part in told["parts"]}

    return examine


def alter(store: SqlStore, statement: Any) -> None:
    with store.transaction() as tx:
        tx.connection.execute(statement)


@on_sql
def test_a_sound_store_part_by_part(
    cli: Cli, doctor: Callable[..., Any], store_kind: str, engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": {"a": 1}})
    engine.acquire(engine.claim("a"))
    queued(engine, "a")
    parts = doctor()
    assert list(parts)[: len(STORE_PARTS)] == STORE_PARTS
    store = parts["store"]
    assert store["state"] == "ok"
    assert (store["facts"]["schema"], store["facts"]["from"]) == (REVISION, "--store")
    assert store["facts"]["server"].startswith(
        {"sqlite": "SQLite 3", "postgresql": "PostgreSQL 1"}.get(store_kind, "M")
    )
    assert 0 < store["facts"]["round_trip_seconds"] < 60
    assert parts["wake-ups"]["facts"]["by"] == ("listen" if store_kind == "postgresql" else "polling")
    assert abs(parts["clock"]["facts"]["ahead_seconds"]) < 5
    configuration = parts["configuration"]["facts"]
    assert (configuration["version"], configuration["settled"]) == (1, True)
    assert configuration["changed_by"]
    assert configuration["changed_at"].endswith("Z")
    assert (parts["claims"]["facts"]["leases"], parts["claims"]["facts"]["waiters"]) == (1, 1)
    assert parts["sessions"]["facts"] == {"live": 1, "near_expiry": []}
    text = cli("doctor")
    assert text.returncode == 0, text.stdout
    for name in parts:
        assert f" {name}: " in text.stdout
    assert "session_ttl_seconds = 30.0 (default)" in text.stdout


@on_sqlite
def test_an_empty_store_is_inactive_but_sound(cli: Cli, doctor: Callable[..., Any], store: Any) -> None:
    parts = doctor()
    assert (parts["configuration"]["state"], parts["installations"]["state"]) == ("inactive", "inactive")
    assert "nothing is limited -> `penstock apply FILE`" in cli("doctor").stdout
    assert store.configuration().version == 0  # it only looks


@on_sqlite
def test_a_store_that_is_not_there_or_does_not_answer(
    cli: Cli, doctor: Callable[..., Any], store_url: str, tmp_path: Path
) -> None:
    part = doctor(expected=69)["store"]
    assert "`penstock db upgrade` makes it" in part["detail"]
    assert not (tmp_path / "penstock.db").exists()
    done = cli("--store", "postgresql://u:secret@127.0.0.1:1/x", "doctor")
    assert done.returncode == 69
    assert "fault     store: (from --store) postgresql+psycopg://u:***@127.0.0.1:1/x: " in done.stdout
    assert "-> see that the database runs" in done.stdout.splitlines()[0]
    assert "secret" not in done.stdout + done.stderr
    assert cli("--store", "nonsense", "doctor").returncode == 69


@on_sql
def test_a_wrong_schema(doctor: Callable[..., Any], store: Any) -> None:
    for revision, remedy in (("0001", "`penstock db upgrade`"), ("9999", "upgrade Penstock here")):
        try:
            with store.transaction() as tx:
                tx.connection.exec_driver_sql(f"UPDATE {t.VERSION_TABLE} SET version_num = '{revision}'")
            part = doctor(expected=69)["store"]
            assert (part["remedy"], part["facts"]["schema"]) == (remedy, revision)
        finally:
            with store.transaction() as tx:
                tx.connection.exec_driver_sql(f"UPDATE {t.VERSION_TABLE} SET version_num = '{REVISION}'")


@on_sqlite
def test_a_change_that_was_stopped_halfway(
    cli: Cli, doctor: Callable[..., Any], store: Any, configure: Configure
) -> None:
    configure(pools={"limits": {"a": 1}})
    alter(store, update(t.meta).values(settled_version=0))
    part = doctor(expected=1)["configuration"]
    assert (part["state"], part["facts"]["settled"]) == ("fault", False)
    assert cli("janitor", "--once").returncode == 0  # its remedy
    doctor()


@on_sqlite
def test_rules_that_no_host_can_match(doctor: Callable[..., Any], configure: Configure) -> None:
    configure(runs={"tag_concurrency_limits": [{"key": "dagster/backfill", "limit": 1}]})
    part = doctor()["rules"]
    assert part["state"] == "warning"
    assert (
        "concurrency.runs.tag_concurrency_limits[0]: 'dagster/backfill': no host sets this tag by itself"
        in part["detail"]
    )


@on_sql
def test_installations_and_their_fingerprints(doctor: Callable[..., Any], new_engine: NewEngine) -> None:
    new_engine(host="airflow", deployment="prod", fingerprint="https://airflow.example").configuration()
    (row,) = doctor()["installations"]["facts"]["deployments"]
    assert (row["host"], row["deployment"], row["fingerprint"]) == ("airflow", "prod", "https://airflow.example")
    assert row["registered_at"].endswith("Z")


@on_sqlite
def test_sessions_that_miss_their_beats(doctor: Callable[..., Any], store: Any, new_engine: NewEngine) -> None:
    store.clock_shift = -25 * SECOND
    engine = new_engine(settings=dataclasses.replace(CALM, session_ttl_seconds=30))
    engine.acquire(engine.claim("a"))
    store.clock_shift = 0
    part = doctor()["sessions"]
    assert (part["state"], len(part["facts"]["near_expiry"])) == ("warning", 1)
    assert f"pid {os.getpid()} on " in part["detail"]


@on_sql
def test_what_was_left_behind(cli: Cli, doctor: Callable[..., Any], store: Any, new_engine: NewEngine) -> None:
    store.clock_shift = -3600 * SECOND
    engine = new_engine(settings=dataclasses.replace(CALM, session_ttl_seconds=30))
    lease = engine.acquire(engine.claim("a", op_id="load"))
    store.clock_shift = 0
    part = doctor(expected=1)["claims"]
    assert part["facts"]["left_behind"] == [lease.claim_id]
    assert "process/process load" in part["detail"]
    assert "-> `penstock janitor --once` ends it" in cli("doctor").stdout
    assert cli("janitor", "--once").returncode == 0  # its remedy
    doctor()


@on_sqlite
def test_a_slot_that_no_claim_holds(doctor: Callable[..., Any], store: Any, configure: Configure) -> None:
    configure(pools={"limits": {"a": 2}})
    stray = Claim(kind="op", host="h", deployment="d").claim_id  # type: ignore[arg-type]
    alter(store, update(t.slot).where(t.slot.c.n == 1).values(claim_id=stray))
    part = doctor(expected=1)["claims"]
    assert part["facts"]["slots_without_claim"] == {"pool:a": 1}


@on_sqlite
def test_claims_that_wait_for_each_other(doctor: Callable[..., Any], engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1, "b": 1}})
    first, second = engine.acquire(engine.claim("a")), engine.acquire(engine.claim("b"))
    inner = queued(engine, "b", parent_id=first.claim_id)
    other = queued(engine, "a", parent_id=second.claim_id)
    part = doctor(expected=1)["circles"]
    assert [set(circle) for circle in part["facts"]["circles"]] == [{inner.claim_id, other.claim_id}]


@on_sqlite
def test_slots_that_nobody_came_back_for(doctor: Callable[..., Any], engine: Engine, configure: Configure) -> None:
    """A host too busy to start a task within its ticket's time: the slot had stood idle, and nobody said so."""
    configure(pools={"limits": {"a": 2}})
    for op_id in ("late", "waits"):
        engine.request(engine.claim("a:2", run_id="run", op_id=op_id), ticket=True).step()
    store = engine.store
    assert isinstance(store, SqlStore)
    store.clock_shift = 2 * 10**6 * SECOND
    store.sweep()
    store.clock_shift = 0
    part = doctor()["tickets"]
    assert (part["state"], len(part["facts"]["given_up"])) == ("warning", 1)
    assert (
        "1 in the last hour were granted slots and did not come for them in time: process/process run" in part["detail"]
    )


@pytest.mark.parametrize("store_kind", ["postgresql"], indirect=True)
def test_behind_a_pooler_it_polls_and_says_why(
    doctor: Callable[..., Any], store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SqlStore, "listen", lambda *_: None)  # what it is behind PgBouncer
    facts = doctor()["wake-ups"]["facts"]
    assert facts == {"by": "polling", "why": "a pooler stands before the database"}


@on_sqlite
def test_clocks_that_do_not_agree(doctor: Callable[..., Any], store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = SqlStore.snapshot_time
    monkeypatch.setattr(SqlStore, "snapshot_time", lambda self: ours(self) - 3600 * SECOND)
    part = doctor()["clock"]
    assert (part["state"], round(part["facts"]["ahead_seconds"])) == ("warning", -3600)
    assert "59 min 59 s behind" in part["detail"] or "1 h behind" in part["detail"]


# -- the environment ------------------------------------------------------------------------------------------------


@on_sqlite
def test_settings_and_where_each_came_from(
    cli: Cli, doctor: Callable[..., Any], store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_SESSION_TTL_SECONDS", "45")
    monkeypatch.setenv("PENSTOCK_DEPLOYMENT", "east")
    monkeypatch.setenv("PENSTOCK_ENFORCMENT", "off")
    parts = doctor()
    assert parts["settings"]["state"] == "warning"  # the last of its lines
    assert "did you mean PENSTOCK_ENFORCEMENT?" in cli("doctor").stdout
    text = cli("doctor").stdout
    assert "session_ttl_seconds = 45.0 (PENSTOCK_SESSION_TTL_SECONDS)" in text
    assert "deployment = east (PENSTOCK_DEPLOYMENT)" in text
    monkeypatch.setenv("PENSTOCK_ON_STORE_ERROR", "panic")
    part = doctor(expected=1)["settings"]
    assert "'panic': one of wait, fail, run is expected" in cli("doctor").stdout
    assert part["remedy"]


def test_every_setting_of_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "session_ttl_seconds": "7",
        "enforcement": "off",
        "on_store_error": "fail",
        "pool_per_op": "*",
        "history_days": "0.5",
    }
    assert values.keys() == ENVIRONMENT.keys()
    for name, value in values.items():
        monkeypatch.setenv(ENVIRONMENT[name], value)
    chosen = Settings.from_environment()
    assert all(getattr(chosen, name) != getattr(Settings(), name) for name in values)


@pytest.mark.parametrize("value", ["", "x", "0", "-1", "nan", "1e9"])
@pytest.mark.parametrize("name", ["session_ttl_seconds", "history_days"])
def test_a_figure_that_cannot_be_used_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(ENVIRONMENT[name], value)
    with pytest.raises(ClaimError, match=f"{ENVIRONMENT[name]}='{value}': (seconds|days) from .* to .* are expected"):
        Settings.from_environment()


@on_sqlite
@pytest.mark.parametrize(("enforcement", "state"), [("observe", "warning"), ("off", "inactive")])
def test_enforcement_that_is_not_in_force(
    doctor: Callable[..., Any], store: Any, monkeypatch: pytest.MonkeyPatch, enforcement: str, state: str
) -> None:
    monkeypatch.setenv("PENSTOCK_ENFORCEMENT", enforcement)
    part = doctor()["enforcement"]
    assert (part["state"], part["detail"].partition(":")[0]) == (state, enforcement)


def distribution(folder: Path, name: str, version: str, entry_points: str = "") -> None:
    """What an installed distribution leaves for others to find."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(entry_points)


@on_sqlite
def test_plugins_loaded_disabled_and_failing(
    cli: Cli, doctor: Callable[..., Any], store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    distribution(site, "rooms-plugin", "3.2", "[penstock]\nrooms = rooms_plugin_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(site))
    parts = doctor(expected=1)
    assert parts["plugin logging"]["state"] == "ok"
    broken = parts["plugin rooms"]
    assert (broken["state"], broken["facts"]["distribution"]) == ("fault", "rooms-plugin 3.2")
    assert "PENSTOCK_PLUGINS_DISABLED=rooms" in broken["remedy"]
    monkeypatch.setenv("PENSTOCK_PLUGINS_DISABLED", "rooms, romms")
    parts = doctor()
    assert (parts["plugin rooms"]["state"], parts["plugin romms"]["state"]) == ("inactive", "warning")
    distribution(site, "other-rooms", "1.0", "[penstock]\nlogging = json\n")
    assert "two plugins are installed by this name" in doctor(expected=1)["plugin logging"]["detail"]


@on_sqlite
def test_hosts_that_are_installed_and_really_active(
    doctor: Callable[..., Any], store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    for variable in ("PENSTOCK_STORE_URL", "AIRFLOW_CONFIG"):
        monkeypatch.delenv(variable, raising=False)

    def host(name: str) -> tuple[str, str]:
        part = doctor()[name]
        return part["state"], part["detail"]

    assert (host("airflow")[0], host("prefect")[0]) == ("inactive", "inactive")
    site = tmp_path / "site"
    distribution(site, "apache-airflow-core", "3.3.1")
    distribution(site, "prefect", "3.6.4")
    monkeypatch.syspath_prepend(str(site))
    assert host("airflow") == ("inactive", "Airflow 3.3.1: the policy is installed, but inactive without a store")
    assert host("prefect")[0] == "inactive"
    (tmp_path / "airflow.cfg").write_text("[penstock]\nstore_url = sqlite:///x%%y.db\n")
    assert host("airflow") == (
        "ok",
        f"Airflow 3.3.1: the policy is active, its store from {tmp_path}/airflow.cfg ([penstock] store_url)",
    )
    (tmp_path / "airflow.cfg").write_text("no section")
    monkeypatch.setenv("AIRFLOW__PENSTOCK__STORE_URL_CMD", "echo x")
    assert host("airflow")[1].endswith("its store from AIRFLOW__PENSTOCK__STORE_URL_CMD")
    monkeypatch.setenv("PENSTOCK_STORE_URL", "sqlite:///x.db")
    assert host("prefect")[0] == "ok"


@on_sqlite
def test_hosts_that_are_too_old(
    doctor: Callable[..., Any], store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution(tmp_path / "site", "apache-airflow", "2.11.0")
    distribution(tmp_path / "site", "prefect", "3.0.1")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    parts = doctor(expected=1)
    assert (parts["airflow"]["state"], parts["prefect"]["state"]) == ("fault", "fault")
    assert parts["airflow"]["remedy"] == "upgrade to 3.1 or later"
