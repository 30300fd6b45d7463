"""Runs that wait before their infrastructure starts, on a real server on PostgreSQL with real workers."""

from __future__ import annotations

import base64
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import penstock
import pytest
from penstock import changes
from penstock.config import Concurrency
from penstock.demo.prefect_host import PrefectHost
from penstock.engine import Engine
from penstock_prefect.adoption import GONE
from penstock_prefect.tickets import OLDER_HOLDS
from prefect_deployed import Runs, wait_for_expiry
from prefect_runs import SERVER_SECRET

FLOWS = Path(__file__).parent / "flows"
AWAITING = "AwaitingConcurrencySlot"
LIMITS = {
    "pools": {"limits": {"closed": 0, "first": 1, "outer": 1, "inner": 2, "watched": 1, "elsewhere": 1}},
    "runs": {"max_concurrent_runs": 10, "tag_concurrency_limits": [{"key": "team", "value": "analytics", "limit": 1}]},
    "ops": {"max_concurrent": 1},
}
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def engine(database_host: PrefectHost) -> Iterator[Engine]:
    with penstock.connect(database_host.store_url) as engine:
        version, _ = engine.configuration(fresh=True)
        changes.apply(engine, Concurrency.model_validate(LIMITS), expected_version=version)
        yield engine


@pytest.fixture
def runs(database_host: PrefectHost, work_pool: str, tmp_path: Path) -> Runs:
    return Runs(database_host, tmp_path)


def free(engine: Engine, host: PrefectHost, *, seconds: float = 60) -> None:
    """Until nothing is held or waited for by a run."""

    def nothing() -> bool:
        status = engine.status()
        return not [one for one in status["leases"] + status["waiters"] if one["host"] == "prefect"]

    host.wait_for("everything is free", nothing, seconds=seconds)


def test_a_blocked_run_shows_what_it_waits_for_and_starts_at_once_when_there_is_room(
    runs: Runs, engine: Engine, database_host: PrefectHost
) -> None:
    """The worker has room for one process: those who wait take nothing of it. Nor do they change state again."""
    first = {"pools": ["first"]}
    with engine.hold("first", op_id="load"):
        low = runs.start("plain", "low", penstock=first)
        runs.wait_for_state(low, AWAITING)
        high = runs.start("plain", "high", penstock={**first, "priority": 5})
        runs.wait_for_state(high, AWAITING)
        other = runs.start("plain", "beside")  # in the room that those who wait have left
        assert runs.wait_for_end(other)["state"]["type"] == "COMPLETED"
        shown = database_host.flow_run(low)
        assert shown["state"]["message"].startswith("first: 1 of 1 held by process/process load")
        assert shown["run_count"] == 0
        time.sleep(4)  # longer than a worker's prefetch, with which a wait of another kind would churn
        freed_at = time.time()
    runs.wait_for_state(high, "Pending", "Submitting", "Running", "Completed", seconds=20)
    for run_id in (high, low):
        ended = runs.wait_for_end(run_id)
        assert ended["state_name"] == "Completed"
        assert ended["run_count"] == 1
        names = runs.names(run_id)
        waited_seconds = _at(database_host, run_id, "Pending") - _at(database_host, run_id, AWAITING, first=True)
        assert names.count(AWAITING) <= 2 + waited_seconds / 20, names  # once to wait, once to be fetched
        assert names[-1] == "Completed"
    assert runs.intervals("high")[0][1] <= runs.intervals("low")[0][0]  # the higher priority went first, and never both
    assert _at(database_host, high, "Pending") - freed_at < 2.0
    free(engine, database_host)


def test_runs_that_shall_not_wait_end_before_they_begin(runs: Runs, engine: Engine, database_host: PrefectHost) -> None:
    declared = {
        "skipped": {"pools": ["closed"], "on_blocked": "skip"},
        "failed": {"pools": ["closed"], "on_blocked": "fail"},
        "late": {"pools": ["closed"], "wait_timeout_seconds": 2},
        "impossible": {"pools": ["first:2"]},
        "wrong": {"pool": "closed"},
    }
    started = {label: runs.start("plain", label, penstock=one) for label, one in declared.items()}
    ended = {label: runs.wait_for_end(run_id) for label, run_id in started.items()}
    said = {label: (run["state"]["name"], run["state"]["message"]) for label, run in ended.items()}
    assert said["skipped"] == ("Skipped", "closed: closed (limit 0)")
    assert said["failed"][0] == "Failed"
    assert "closed" in said["failed"][1]
    assert said["late"][0] == "Failed"
    assert "no slot within 2 s; wait longer, or raise the limit" in said["late"][1]
    assert said["impossible"][0] == "Failed"
    assert "raise the limit" in said["impossible"][1]
    assert said["wrong"][0] == "Crashed"
    assert "job variable 'penstock': pool: Extra inputs are not permitted" in said["wrong"][1]
    assert {run["run_count"] for run in ended.values()} == {0}
    assert not any(map(runs.has_begun, declared))
    free(engine, database_host)


def test_a_run_cancelled_while_it_waits_leaves_the_queue(
    runs: Runs, engine: Engine, database_host: PrefectHost
) -> None:
    run_id = runs.start("plain", "cancelled", penstock={"pools": ["closed"]})
    runs.wait_for_state(run_id, AWAITING)
    database_host.set_state(run_id, "CANCELLING")
    free(engine, database_host, seconds=20)
    assert database_host.flow_run(run_id)["state_type"] == "CANCELLED"
    assert not runs.has_begun("cancelled")


def test_the_process_of_a_run_joins_its_lease_and_its_tasks_find_it(
    runs: Runs, engine: Engine, database_host: PrefectHost
) -> None:
    """Whether the flow knows of Penstock or not: what the run holds covers its blocks, its tasks count in it."""
    for flow in ("undecorated", "decorated"):
        run_id = runs.start(flow, flow, penstock={"pools": ["outer"]}, tags=["team:analytics"])
        database_host.wait_for("it works", lambda flow=flow: runs.has_begun(flow), seconds=240)
        (row,) = [row for row in engine.snapshot().claims if row.claim.run_id == run_id and "runs" in row.wants]
        assert row.wants == {"pool:outer": 1, "runs": 1, "run_tag:team=analytics": 1}
        assert len(row.session_ids) >= 2  # the worker, and the run's own process
        assert runs.wait_for_end(run_id)["state_name"] == "Completed"
        granted = [dict(one.slots) for one in engine.store.history() if one.event == "granted"]
        ops = f"run_ops:prefect/database/{run_id}"
        assert {"pool:inner": 1, ops: 1} in granted if flow == "undecorated" else {ops: 1} in granted
        free(engine, database_host)
        assert [one.event for one in engine.store.history() if one.claim_id == row.claim.claim_id] == [
            "granted",
            "adopted",
            "released",
        ]


def test_a_killed_worker_leaks_nothing_and_nothing_starts_twice(
    runs: Runs, engine: Engine, database_host: PrefectHost
) -> None:
    """It has a run at work, which lives on with its slots, and one that waits: the next worker goes on with that."""
    watched = {"penstock": {"pools": ["watched"]}, "parameters": {"seconds": 60}}
    database_host.create_work_pool("killed", "penstock-process")
    database_host.start_worker("killed", "killed")
    at_work = runs.start("plain", "at_work", "killed", **watched)
    database_host.wait_for("it works", lambda: runs.has_begun("at_work"), seconds=240)
    waiting = runs.start("plain", "waiting", "killed", **watched)
    runs.wait_for_state(waiting, AWAITING)
    killed = database_host.kill_worker("killed")
    database_host.start_worker("next", "killed", "--prefetch-seconds", "100")  # it need not wait for the run's time
    wait_for_expiry(engine, database_host, killed)
    assert {row["run_id"] for row in engine.status()["leases"]} == {at_work}  # its own process keeps it
    # Declared crashed and scheduled again while that process is at work, it does not start beside itself.
    database_host.set_state(at_work, "CRASHED")
    database_host.set_state(at_work, "SCHEDULED")
    runs.wait_for_state(at_work, AWAITING)
    assert database_host.flow_run(at_work)["state"]["message"] == OLDER_HOLDS
    runs.tell_to_end("at_work")
    runs.tell_to_end("waiting")
    assert runs.wait_for_end(waiting, seconds=180)["state_name"] == "Completed"
    for run_id in (at_work, waiting):
        assert database_host.flow_run(run_id)["run_count"] == 1
    ((_, ended),) = runs.intervals("at_work")
    ((begun, _),) = runs.intervals("waiting")
    assert ended <= begun
    free(engine, database_host)


def test_a_run_scheduled_again_while_its_process_is_loading_is_begun_by_that(
    runs: Runs, engine: Engine, database_host: PrefectHost, tmp_path: Path
) -> None:
    """As by an automation, where Prefect's worker reports a crash anew that its runner has reported. The process asks
    the API when to begin: put off, the run would wait for that process, and that for the run's time.
    """
    loads = tmp_path / "loads"
    database_host.create_work_pool("again", "penstock-process")
    database_host.start_worker("again", "again")
    deployment = database_host.deploy("slow_to_load", f"{FLOWS / 'slow_to_load.py'}:slow_to_load", "again")
    run_id = database_host.run_deployment(deployment, job_variables={"env": {"LOADS_WHEN": str(loads)}})
    database_host.wait_for("its process loads", loads.with_suffix(".begun").exists, seconds=120)
    database_host.set_state(run_id, "CRASHED")
    database_host.set_state(run_id, "SCHEDULED")
    database_host.wait_for("a worker has it again", lambda: runs.names(run_id).count("Pending") == 2, seconds=60)
    time.sleep(2)  # where it is put off, that is soon
    loads.touch()
    ended = runs.wait_for_end(run_id, seconds=90)
    assert (ended["state_name"], ended["run_count"]) == ("Completed", 1)
    free(engine, database_host)
    database_host.kill_worker("again")


def test_another_worker_class_whose_runs_know_nothing_of_penstock(
    runs: Runs, engine: Engine, database_host: PrefectHost
) -> None:
    """The mixin over a worker of one's own. Without it the API is asked: a run keeps its slots until it is over."""
    declared = {"pools": ["elsewhere"]}
    database_host.create_work_pool("detached", "penstock-detached")
    database_host.start_python_worker("elsewhere", FLOWS / "elsewhere.py", "detached")
    with engine.hold("elsewhere", op_id="load"):
        run_id = runs.start("plain", "detached", "detached", penstock=declared, parameters={"seconds": 60})
        runs.wait_for_state(run_id, AWAITING)
    database_host.wait_for("it works", lambda: runs.has_begun("detached"), seconds=240)
    wait_for_expiry(engine, database_host, database_host.kill_worker("elsewhere"))
    assert {row["run_id"] for row in engine.status()["leases"]} == {run_id}
    runs.tell_to_end("detached")
    runs.wait_for_end(run_id)
    free(engine, database_host, seconds=30)  # the other workers ask the API


@pytest.mark.parametrize("freed", [False, True])
def test_a_process_that_begins_long_after_its_worker_was_killed_comes_to_its_slots(
    runs: Runs, engine: Engine, database_host: PrefectHost, tmp_path: Path, freed: bool
) -> None:
    """Its flow knows nothing of Penstock. Where somebody has freed them meanwhile, it says that it goes on without."""
    begins, name = tmp_path / "begins", f"slow-{freed}"
    database_host.create_work_pool(name, "penstock-slow")
    database_host.start_python_worker(name, FLOWS / "elsewhere.py", name, str(begins))
    run_id = runs.start("plain", "slow", name, penstock={"pools": ["elsewhere"]}, parameters={"seconds": 60})
    database_host.wait_for("it holds", lambda: any(row.probed for row in engine.snapshot().claims), seconds=60)
    wait_for_expiry(engine, database_host, database_host.kill_worker(name))
    (row,) = engine.snapshot().claims
    assert (row.claim.run_id, row.session_ids) == (run_id, ())
    if freed:
        engine.store.end(row.claim.claim_id, reason="test")
    begins.touch()
    database_host.wait_for("it works", lambda: runs.has_begun("slow"), seconds=120)
    assert [bool(one.session_ids) for one in engine.snapshot().claims] == ([] if freed else [True])
    if freed:
        database_host.wait_for("it says so", lambda: GONE in database_host.run_logs(run_id), seconds=60)
    assert (GONE in database_host.run_logs(run_id)) is freed
    runs.tell_to_end("slow")
    assert runs.wait_for_end(run_id)["state_name"] == "Completed"
    free(engine, database_host)


def test_a_server_that_asks_who_one_is_refuses_strangers_and_no_log_tells_the_secret(
    runs: Runs, database_host: PrefectHost
) -> None:
    """All that these tests and test_liveness.py do is done at such a server."""
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{database_host.api_url}/admin/version", timeout=30)
    run_id = runs.start("decorated", "asked", penstock={"pools": ["outer"]})
    assert runs.wait_for_end(run_id)["state_name"] == "Completed"
    said = database_host.logs() + "\n".join(database_host.run_logs(run_id))
    assert "Penstock" in said or "Slots granted" in said
    assert SERVER_SECRET not in said
    assert base64.b64encode(f"admin:{SERVER_SECRET}".encode()).decode() not in said


def _at(host: PrefectHost, run_id: str, name: str, *, first: bool = False) -> float:
    """When the run came into the state of that name, for the last or the first time, in seconds since 1970."""
    times = [state["timestamp"] for state in host.states(run_id) if state["name"] == name]
    return datetime.fromisoformat(times[0 if first else -1]).timestamp()
