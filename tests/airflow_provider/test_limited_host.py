"""What a DAG's author says, kept on a real Airflow. All runs of `dags/authors.py` go side by side, once."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hostile import NO_TEMPLATES, usable
from intervals import Interval, most_at_once, most_held
from penstock.claim import encode_part
from penstock.demo.airflow_host import AirflowHost
from penstock.engine import Engine
from penstock.report import op_pools
from penstock.rules import pool_key
from penstock.store.contract import Event

# What an author says does not depend on the kind of store.
STORE = "postgresql" if os.environ.get("PENSTOCK_TEST_POSTGRESQL_URL") else "sqlite"
pytestmark = pytest.mark.parametrize("store_url", [STORE], indirect=True, scope="session")

RUNS: dict[tuple[str, str], dict[str, Any]] = {
    ("exclusive", "first"): {},
    ("blocked", "1"): {},
    ("said_of_tasks", "1"): {},
    ("within", "as_the_dag_says"): {},
    ("within", "as_the_conf_says"): {"together": True, "penstock": {"max_concurrent": 3}},
    ("within", "wrong"): {"penstock": {"max_concurent": 3}},
    ("of_a_team_1", "1"): {},
    ("of_a_team_2", "1"): {},
    ("in_rooms", "1"): {},
    ("in_rooms", "2"): {},
    ("own_pools", "1"): {},
    ("own_pools", "2"): {},
    ("hostile", "1"): {},
}
LIMITS = {
    "pools": {
        "default_limit": 1,
        "limits": {"database": 2, "narrow": 1, "shut": 0, "rooms": {"limit": 1, "granularity": "run"}},
    },
    "runs": {
        "max_concurrent_runs": len(RUNS) + 1,
        "tag_concurrency_limits": [
            {"key": "team", "value": "analytics", "limit": 1},
            {"key": "airflow/backfill_id", "value": {"applyLimitPerUniqueValue": True}, "limit": 1},
        ],
    },
    "ops": {
        "tag_concurrency_limits": [{"key": "text", "value": {"applyLimitPerUniqueValue": True}, "limit": 1}],
    },
}
BACKFILL = ["backfill", "create", "--dag-id", "filled", "--from-date", "2021-01-01", "--to-date", "2022-01-02"]
FAILED = {("blocked", "1"), ("within", "wrong")}
Recorded = Mapping[str, list[Interval]]


@pytest.fixture(scope="module")
def recorded(started_host: AirflowHost, engine: Engine, limits: None, intervals_folder: Path) -> Recorded:
    """Name → intervals, when every run is over and every slot is back."""
    for (dag_id, run_id), conf in RUNS.items():
        started_host.trigger(dag_id, run_id, conf)
    started_host.command(*BACKFILL, "--max-active-runs", "2")
    skipped_and_let_go(started_host, engine, intervals_folder)
    for dag_id, run_id in RUNS:
        state = "failed" if (dag_id, run_id) in FAILED else "success"
        started_host.wait_for_runs(dag_id, [run_id], seconds=240, expected=state)

    filled = backfill_runs(started_host)
    assert len(filled) == 2
    started_host.wait_for_runs("filled", filled, seconds=120)

    def nothing_left() -> bool:
        status = engine.status()
        return not status["leases"] and not status["waiters"]

    started_host.processes.wait_for("every slot is free", nothing_left, seconds=60)
    found: dict[str, list[Interval]] = defaultdict(list)
    for path in intervals_folder.glob("*.json"):
        interval = json.loads(path.read_text())
        found[interval["name"]].append((interval["began"], interval["ended"]))
        path.unlink()
    (intervals_folder / "let_go").unlink()
    return found


def skipped_and_let_go(host: AirflowHost, engine: Engine, folder: Path) -> None:
    """A second run of `exclusive` comes to its end while the first goes on; which may end then."""

    def first_has_begun() -> bool:
        return any(lease["run_id"] == "exclusive/first" for lease in engine.status()["leases"])

    host.processes.wait_for("the first run holds its pool", first_has_begun, seconds=60)
    host.trigger("exclusive", "second")
    host.wait_for_runs("exclusive", ["second"], seconds=120)
    (folder / "let_go").touch()


def backfill_runs(host: AirflowHost) -> list[str]:
    return [run_id for run_id in host.run_states("filled") if run_id.startswith("backfill__")]


def taken(engine: Engine, dag_id: str, *, by_runs: bool) -> list[list[str]]:
    """The limits of each grant to a run of this DAG, or to one of its ops."""
    granted = [row for row in engine.store.history() if row.event is Event.GRANTED and row.label is not None]
    of_dag = [row for row in granted if row.label.startswith(f"airflow/tests {dag_id}/")]
    return [sorted(row.slots) for row in of_dag if (row.label.count(" ") == 1) == by_runs]


def whole(*names: str) -> Callable[[Recorded], list[Interval]]:
    """From the beginning of the first to the end of the last interval of each name."""
    return lambda recorded: [
        (min(began for began, _ in recorded[name]), max(ended for _, ended in recorded[name])) for name in names
    ]


def states(host: AirflowHost, dag_id: str, run_id: str) -> dict[str, str]:
    return {task["task_id"]: task["state"] for task in host.task_instances(dag_id, run_id)}


def test_a_task_takes_several_pools_together(recorded: Recorded) -> None:
    for name in ("one", "other"):
        assert most_at_once([*recorded["both"], *recorded[name]]) == 1


def test_a_task_takes_as_many_slots_as_a_template_says(recorded: Recorded) -> None:
    weighed = [(*interval, slots) for slots in (1, 2) for interval in recorded[f"weighs_{slots}"]]
    assert Counter(slots for *_, slots in weighed) == {1: 2, 2: 1}
    assert most_held(weighed) == 2


def test_each_mapped_index_has_the_pool_of_its_argument(recorded: Recorded, engine: Engine) -> None:
    assert [len(recorded["table_t1"]), len(recorded["table_t2"])] == [2, 1]
    assert most_at_once(recorded["table_t1"]) == 1
    grants = Counter(key for keys in taken(engine, "said_of_tasks", by_runs=False) for key in keys)
    assert (grants["pool:table_t1"], grants["pool:table_t2"]) == (2, 1)


def test_an_argument_that_means_something_elsewhere_is_only_a_name(recorded: Recorded, engine: Engine) -> None:
    """To a template, a database, a terminal: what the template of a pool and of a tag put in stays as it is."""
    for text in NO_TEMPLATES:
        assert len(recorded[f"hostile {text}"]) == 1
    found = [(pool, tag.partition(":text=")[2]) for pool, tag in taken(engine, "hostile", by_runs=False)]
    assert sorted(found) == sorted((pool_key(usable(text)), f"*:{encode_part(text)}") for text in NO_TEMPLATES)


def test_the_pool_of_a_group_counts_for_each_task_in_it(recorded: Recorded) -> None:
    assert len(recorded["grouped"]) == 2
    assert most_at_once(recorded["grouped"]) == 1


def test_a_dag_limits_the_tasks_of_each_of_its_runs(recorded: Recorded) -> None:
    assert len(recorded["within_as_the_dag_says"]) == 3
    assert most_at_once(recorded["within_as_the_dag_says"]) == 1


def test_the_conf_of_a_run_replaces_what_its_dag_says_and_leaves_the_rest(recorded: Recorded) -> None:
    """Its tasks end only if two of them are in progress together; of one customer there is never more than one."""
    assert len(recorded["within_as_the_conf_says"]) == 3
    assert most_at_once(recorded["within_as_the_conf_says_a"]) == 1


def test_a_wrong_conf_fails_the_tasks_of_the_run_and_says_what_is_wrong(
    recorded: Recorded, started_host: AirflowHost
) -> None:
    assert not recorded["within_wrong"]
    assert "is 'max_concurrent' meant?" in started_host.task_log("within", "wrong", "serve", 0)
    tries = {task["try_number"] for task in started_host.task_instances("within", "wrong")}
    assert tries == {1}, "it is as wrong at each try"


def test_a_run_tag_limits_the_runs_of_a_group_of_dags(recorded: Recorded) -> None:
    assert most_at_once(whole("of_a_team_1_1", "of_a_team_2_1")(recorded)) == 1


def test_the_runs_of_a_backfill_have_a_tag_in_common(
    recorded: Recorded, started_host: AirflowHost, engine: Engine
) -> None:
    names = [f"filled_{run_id}" for run_id in backfill_runs(started_host)]
    assert most_at_once(whole(*names)(recorded)) == 1
    backfills = [keys for keys in taken(engine, "filled", by_runs=True) if len(keys) > 1]
    assert backfills == [["run_tag:airflow%2Fbackfill_id=*:filled", "runs"]] * 2


def test_a_pool_of_run_granularity_is_the_runs_from_its_beginning(recorded: Recorded, engine: Engine) -> None:
    assert most_at_once(whole("in_rooms_1", "in_rooms_2")(recorded)) == 1
    assert taken(engine, "in_rooms", by_runs=True) == [["pool:rooms", "runs"]] * 2, "known from the DAG: none is late"
    assert not any(taken(engine, "in_rooms", by_runs=False))


def test_an_op_has_a_pool_of_its_own_where_the_setting_says_so(recorded: Recorded, engine: Engine) -> None:
    assert len(recorded["alone"]) == 4
    assert most_at_once(recorded["alone"]) == 1
    found = {row["op"]: row["pools"] for row in op_pools(engine.snapshot(), engine.store.history())}
    assert found["own_pools.alone"] == {"op/tests/own_pools.alone": 1}
    assert found["both"] == {"first": 1, "second": 1}


def test_a_blocked_task_is_skipped_or_fails_or_gives_up_waiting_as_it_says(
    recorded: Recorded, started_host: AirflowHost
) -> None:
    assert not recorded["blocked"]
    found = states(started_host, "blocked", "1")
    assert found == {"skip": "skipped", "fail": "failed", "timing_out": "failed"}
    for task_id in found:
        assert "shut" in started_host.task_log("blocked", "1", task_id)
    assert "within 2 s" in started_host.task_log("blocked", "1", "timing_out")


def test_a_run_is_skipped_while_another_is_already_occurring(recorded: Recorded, started_host: AirflowHost) -> None:
    assert set(states(started_host, "exclusive", "first").values()) == {"success"}
    assert set(states(started_host, "exclusive", "second").values()) == {"skipped"}, "its later tasks too"
    assert len(recorded["exclusive"]) == 1
