"""`penstock explain`: why something waits, for whom, since when and what is ahead of it, on one screen."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from penstock.decision import Waiting
from penstock.engine import Engine
from penstock.errors import WaitTimeout
from penstock.explain import order
from penstock.hookspecs import hookimpl
from situations import CALM, Configure, NewEngine, granted, pass_time, queued, refused

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Json = Callable[..., Any]
SCREEN = 24
on_sql = pytest.mark.parametrize("store_kind", ["sqlite", "postgresql", "mariadb"], indirect=True)
on_sqlite = pytest.mark.parametrize("store_kind", ["sqlite"], indirect=True)


@pytest.fixture
def engine(new_engine: NewEngine) -> Engine:
    return new_engine(settings=CALM)


def one(engine: Engine, identifier: str) -> dict[str, Any]:
    (match,) = engine.explain(identifier)["matches"]
    return dict(match)


@on_sql
def test_a_waiter_on_one_screen(cli: Cli, engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"db": 2, "api": 1}})
    holder = engine.acquire(engine.claim("db:2", run_id="nightly", op_id="load", url="https://host.example/load"))
    ahead = queued(engine, "db", op_id="before", priority=5)
    waiter = queued(engine, "db", "api", run_id="r", op_id="report", priority=2)
    told = json.loads(cli("explain", waiter.claim_id, "--json").stdout)
    assert (told["id"], told["kind"]) == (waiter.claim_id, "claim")
    (match,) = told["matches"]
    (barred,) = match["blocked_by"]
    assert (match["state"], match["position"], match["ahead"]) == ("waiting", 2, [ahead.claim_id])
    assert (barred["limit"], barred["held"], barred["capacity"], barred["needed"]) == ("pool:db", 2, 2, 1)
    assert (barred["holders"], barred["waiting_ahead"]) == ([holder.claim_id], 1)
    (held_by,) = barred["held_by"]
    assert (held_by["slots"], held_by["url"], held_by["run_id"]) == (2, "https://host.example/load", "nightly")
    done = cli("explain", waiter.claim_id)
    assert done.returncode == 0, done.stderr
    for part in (
        f"process/process r report  (claim {waiter.claim_id})",
        f"waits since {match['enqueued_at']} (",
        "place 2 in the queue, priority 2: as if it had come 2 min earlier",
        "for pool:db: 2 of 2 held, 1 ahead in the queue",
        f"held by process/process nightly load: 2 slots, since {held_by['since']} (",
        ", pid ",
        "https://host.example/load",
        "ahead of it: process/process before, waiting since",
    ):
        assert part in done.stdout
    assert len(done.stdout.splitlines()) < SCREEN


@on_sql
def test_an_id_is_a_claim_else_a_run_else_an_op(cli: Cli, as_json: Json, engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"db": 1}}, runs={"max_concurrent_runs": 9})
    run = engine.acquire(engine.run_claim("r/1"))
    op = engine.acquire(engine.claim("db", run_id="r/1", op_id="load", in_run=True))
    other = queued(engine, "db", run_id="r/2", op_id="load")

    def found(identifier: str) -> tuple[str, list[str]]:
        told = as_json("explain", identifier)
        return told["kind"], [match["claim_id"] for match in told["matches"]]

    assert found(op.claim_id) == ("claim", [op.claim_id])
    assert sorted(found("r/1")[1]) == sorted([run.claim_id, op.claim_id])
    assert sorted(found("process/process/r/1")[1]) == sorted([run.claim_id, op.claim_id])
    assert found("load") == ("op", [other.claim_id, op.claim_id])  # who waits comes first
    assert found("r/1")[0] == "run"
    done = cli("explain", "nobody\x1b")
    assert (done.returncode, done.stdout) == (1, "")
    assert r"'nobody\x1b' holds or waits now" in done.stderr
    assert json.loads(cli("explain", "nobody", "--json").stdout)["matches"] == []
    assert cli("explain").returncode == 2


@on_sql
def test_a_lease_says_what_it_holds_since_when_and_until_when(cli: Cli, engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"db": 2}})
    lease = engine.acquire(engine.claim("db:2", op_id="load"))
    match = one(engine, lease.claim_id)
    assert (match["state"], len(match["slots"]), len(match["sessions"])) == ("held", 2, 1)
    text = cli("explain", "load").stdout
    assert f"holds 2 of pool:db since {match['granted_at']} (" in text
    assert f"for as long as its process beats, now until {match['expires_at']}, pid " in text
    ticket = lease.hand_over(seconds=500)
    assert one(engine, ticket)["sessions"] == []
    assert "unless somebody speaks up for it" in cli("explain", ticket).stdout


@on_sqlite
def test_hundreds_of_holders_and_matches_stay_on_one_screen(cli: Cli, engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"db": 12}})
    holders = [engine.acquire(engine.claim("db", run_id="big", op_id=f"o{number}")) for number in range(12)]
    waiters = [queued(engine, "db", run_id="r", op_id=f"w{number}") for number in range(8)]
    text = cli("explain", waiters[-1].claim_id).stdout
    assert "and 9 more\n" in text
    assert "and 4 more ahead of it" in text
    match = one(engine, waiters[-1].claim_id)
    assert (len(match["blocked_by"][0]["held_by"]), match["blocked_by"][0]["holders_left_out"]) == (10, 2)
    assert "and 7 more of this run, 0 of them waiting" in cli("explain", "big").stdout
    assert "and 3 more of this run, 3 of them waiting" in cli("explain", "r").stdout
    assert len(engine.explain("big")["matches"]) == len(holders)


def test_closed_and_too_small_are_said(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 3, "b": 1}})
    holder = engine.acquire(engine.claim("a:3"))
    wide, closed = queued(engine, "a:2", op_id="w"), queued(engine, "a", op_id="c")
    configure(pools={"limits": {"a": 1, "b": 1}})
    assert "the configuration is version 2 by now" in one(engine, wide.claim_id)["notes"][0]
    for request in (wide, closed):
        request.step()
    match = one(engine, wide.claim_id)
    (barred,) = match["blocked_by"]
    assert (match["state"], barred["needed"], barred["capacity"]) == ("impossible", 2, 1)
    text = "\n".join(lines(engine.explain(wide.claim_id)))
    assert "for pool:a: 3 of 1 held, it needs 2 and can never have them unless the limit is raised" in text
    configure(pools={"limits": {"a": 0, "b": 1}})
    closed.step()
    text = "\n".join(lines(engine.explain(closed.claim_id)))
    assert "for pool:a: closed (limit 0), 3 held" in text
    holder.release()


def test_a_grant_that_nobody_took_is_parked(store: Any, engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    holder, waiter = engine.acquire(engine.claim("a")), queued(engine, "a")
    holder.release()
    assert "its process has not taken the slots yet" in one(engine, waiter.claim_id)["notes"][0]
    pass_time(store, 10)
    store.sweep()
    match = one(engine, waiter.claim_id)
    assert match["state"] == "parked"
    assert "passed over until its process speaks up" in match["notes"][0]


def test_a_waiter_that_asked_for_later_says_so(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1}})
    request = engine.request(engine.claim("a"), ticket=True, eligible_after_seconds=600)
    request.step()
    match = one(engine, request.claim_id)
    assert "asked not to be granted before" in match["notes"][0]


def test_a_skipped_run_is_found(engine: Engine, configure: Configure) -> None:
    configure(runs={"max_concurrent_runs": 0})
    assert refused(engine.request(engine.run_claim("r")).try_step(skip=True))
    match = one(engine, "r")
    assert match["state"] == "skipped"
    assert "there was no room" in match["notes"][0]


def test_a_reservation_is_said_on_both_sides(store: Any, engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 2}})
    engine.acquire(engine.claim("a", op_id="narrow"))
    wide = queued(engine, "a:2", op_id="wide")
    pass_time(store, 301)
    late = queued(engine, "a", op_id="late")
    match = one(engine, late.claim_id)
    (reserved,) = match["reserved_by"]
    assert (reserved["limit"], reserved["by"]["claim_id"]) == ("pool:a", wide.claim_id)
    (reserves,) = one(engine, wide.claim_id)["reserves"]
    assert reserves == {"limit": "pool:a", "until": reserved["until"]}
    pass_time(store, 60)
    assert one(engine, late.claim_id)["reserved_by"] == []


@on_sqlite
def test_a_reservation_in_words(store: Any, engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 2}})
    engine.acquire(engine.claim("a", op_id="narrow"))
    queued(engine, "a:2", op_id="wide")
    pass_time(store, 301)
    late = queued(engine, "a", op_id="late")
    text = "\n".join(lines(engine.explain(late.claim_id)))
    assert "pool:a: what is free is reserved until" in text
    assert "for process/process wide" in text
    assert "it waits so long that it reserves what is free of pool:a" in "\n".join(lines(engine.explain("wide")))


def lines(told: dict[str, Any]) -> list[str]:
    from penstock.cli.explain_command import _lines

    return [line for match in told["matches"] for line in _lines(match)]


@pytest.mark.parametrize(
    ("priority", "words"),
    [
        (0, "priority 0: in order of arrival"),
        (1, "priority 1: as if it had come 1 min earlier"),
        (-3, "priority -3: as if it had come 3 min later"),
        (999, "priority 999: as if it had come 1 h earlier"),
    ],
)
def test_what_a_priority_does_in_words(priority: int, words: str) -> None:
    assert order(priority) == words


# -- those who wait for each other ----------------------------------------------------------------------------------


def circle(engine: Engine, identifier: str) -> list[tuple[str, str, str]]:
    return [
        (link["waiter"]["claim_id"], link["limit"], link["holder"]["claim_id"])
        for link in one(engine, identifier)["circle"]
    ]


def test_nested_blocks_in_opposite_order_are_a_circle(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1, "b": 1}})
    first, second = engine.acquire(engine.claim("a")), engine.acquire(engine.claim("b"))
    inner = queued(engine, "b", parent_id=first.claim_id)
    assert circle(engine, inner.claim_id) == []  # second can still end
    other = queued(engine, "a", parent_id=second.claim_id)
    behind = queued(engine, "a")
    expected = [
        (inner.claim_id, "pool:b", second.claim_id),
        (other.claim_id, "pool:a", first.claim_id),
    ]
    assert circle(engine, inner.claim_id) == expected
    assert circle(engine, other.claim_id) == [expected[1], expected[0]]
    assert set(circle(engine, behind.claim_id)) == set(expected)  # not in it, but behind it
    second.release()
    assert circle(engine, behind.claim_id) == []
    assert granted(inner.step())


def test_room_that_somebody_else_will_give_back_is_no_circle(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 2, "b": 1}})
    first, second = engine.acquire(engine.claim("a")), engine.acquire(engine.claim("b"))
    free = engine.acquire(engine.claim("a"))
    inner, other = queued(engine, "b", parent_id=first.claim_id), queued(engine, "a", parent_id=second.claim_id)
    assert circle(engine, inner.claim_id) == circle(engine, other.claim_id) == []
    free.release()
    assert granted(other.step())


def test_ops_of_runs_that_keep_pools_are_a_circle(engine: Engine, configure: Configure) -> None:
    run_pools = {name: {"limit": 1, "granularity": "run"} for name in ("a", "b")}
    configure(pools={"limits": run_pools})
    one_run, two = engine.acquire(engine.run_claim("1", "a")), engine.acquire(engine.run_claim("2", "b"))
    for run, pool in (("1", "b"), ("2", "a")):
        engine.request(engine.claim(pool, run_id=run, op_id="o", in_run=True)).step()
    waiting = [match for match in engine.explain("1")["matches"] if "ahead" in match]
    assert [(len(match["circle"]), match["kind"]) for match in waiting] == [(2, "run_pool")]
    holders = {link["holder"]["claim_id"] for link in waiting[0]["circle"]}
    assert holders == {one_run.claim_id, two.claim_id}


def test_a_run_that_waits_for_a_child_run_is_a_circle(engine: Engine, configure: Configure) -> None:
    configure(runs={"max_concurrent_runs": 1})
    parent = engine.acquire(engine.run_claim("parent"))
    child = engine.request(engine.run_claim("child", parent_id=parent.claim_id))
    child.step()
    assert circle(engine, "child") == [(child.claim_id, "runs", parent.claim_id)]
    text = "\n".join(lines(engine.explain("child")))
    assert "CIRCLE: these wait for each other" in text
    assert "process/process child waits for runs, which process/process parent holds" in text


def test_a_closed_limit_is_no_circle(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"a": 1, "b": 0}})
    outer = engine.acquire(engine.claim("a"))
    inner, behind = queued(engine, "b", parent_id=outer.claim_id), queued(engine, "a")
    assert circle(engine, inner.claim_id) == circle(engine, behind.claim_id) == []


def test_a_circle_is_in_the_log_of_the_one_who_closes_it(
    engine: Engine, configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    configure(pools={"limits": {"a": 1, "b": 1}})
    first, second = engine.acquire(engine.claim("a", op_id="1")), engine.acquire(engine.claim("b", op_id="2"))
    queued(engine, "b", op_id="1/inner", parent_id=first.claim_id)
    closing = engine.claim("a", op_id="2/inner", parent_id=second.claim_id)
    with pytest.raises(WaitTimeout):
        engine.acquire(closing, wait_timeout_seconds=0)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning == (
        "these wait for each other, none goes on by itself: process/process 2/inner waits for pool:a, which "
        "process/process 1 holds; process/process 1/inner waits for pool:b, which process/process 2 holds"
    )


def test_an_op_that_waits_for_its_run_says_what_the_run_waits_for(engine: Engine, configure: Configure) -> None:
    """It said "slots that have just become free": the op has no place in the queue, its run or its run's pool has."""
    configure(pools={"limits": {"db": {"limit": 1, "granularity": "run"}}}, runs={"max_concurrent_runs": 2})
    for run_id in ("1", "2"):
        engine.acquire(engine.run_claim(run_id))
    engine.acquire(engine.claim("db", run_id="1", op_id="o", in_run=True))
    with pytest.raises(WaitTimeout, match="db: 1 of 1 held by process/process 1"):
        engine.acquire(engine.claim("db", run_id="2", op_id="o", in_run=True), wait_timeout_seconds=0)
    assert isinstance(engine.request(engine.run_claim("3")).step(), Waiting)
    with pytest.raises(WaitTimeout, match="runs: 2 of 2 held by process/process 1, process/process 2"):
        engine.acquire(engine.claim(run_id="3", op_id="o", in_run=True), wait_timeout_seconds=0)


def test_the_address_of_a_holder_comes_from_the_hook(new_engine: NewEngine) -> None:
    """The hook was declared, and nobody asked it."""

    class Addresses:
        @hookimpl
        def penstock_holder_url(self, claim: Any) -> str:
            return f"https://host.example/{claim.op_id}"

    engine = new_engine(Addresses(), settings=CALM)
    lease = engine.acquire(engine.claim("a", op_id="load"))
    own = engine.acquire(engine.claim("a", op_id="own", url="https://mine.example"))
    assert one(new_engine(settings=CALM), lease.claim_id)["url"] == "https://host.example/load"
    assert one(engine, own.claim_id)["url"] == "https://mine.example"
