"""`penstock free`: leases ended and waiters withdrawn from outside, after asking, never of the wrong run."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from penstock.engine import Engine
from penstock.errors import LeaseLost
from penstock.lease import Lease
from situations import CALM, Configure, NewEngine, granted, held, queued, waiting

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
on_sql = pytest.mark.parametrize("store_kind", ["sqlite", "postgresql", "mariadb"], indirect=True)
on_sqlite = pytest.mark.parametrize("store_kind", ["sqlite"], indirect=True)


@pytest.fixture
def engine(new_engine: NewEngine) -> Engine:
    return new_engine(settings=CALM)


def op(engine: Engine, run_id: str, op_id: str) -> Lease:
    return engine.acquire(engine.claim("db", run_id=run_id, op_id=op_id, in_run=True))


@on_sql
def test_a_lease_is_ended_and_the_next_one_starts(cli: Cli, engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"db": 2}})
    holder = engine.acquire(engine.claim("db:2", run_id="r", op_id="load"))
    waiter = queued(engine, "db", op_id="next")
    done = cli("free", holder.claim_id, "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    assert "process/process r load: holds 2 of pool:db for " in done.stdout
    assert "What holds is not stopped by this" in done.stdout
    assert "may start then: process/process next\n" in done.stdout
    assert done.stdout.endswith("freed 1\n")
    fence = max(granted(waiter.step()).slots, key=lambda slot: slot.epoch).epoch
    assert fence > max(slot.epoch for slot in holder.slots)  # the old ones are dead
    assert held(engine, "pool:db") == 1
    (row,) = [row for row in engine.store.history() if row.detail and row.detail.startswith("freed by ")]
    assert (row.event.value, row.claim_id) == ("released", holder.claim_id)


@on_sql
def test_a_run_goes_whole_and_nothing_of_it_is_granted_on_the_way(
    cli: Cli, engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": {"db": 1, "late": {"limit": 1, "granularity": "run"}}}, runs={"max_concurrent_runs": 5})
    engine.acquire(engine.run_claim("r"))
    holding = engine.acquire(engine.claim("db", "late", run_id="r", op_id="a", in_run=True))
    mine = queued(engine, "db", run_id="r", op_id="b", in_run=True)
    other = queued(engine, "db", run_id="s", op_id="a")
    done = cli("free", "--run", "r", "--yes", "--json")
    told = json.loads(done.stdout)
    assert {holding.claim_id, mine.claim_id} < set(told["freed"])
    assert told["may_start"] == [other.claim_id]
    assert {key: held(engine, f"pool:{key}") for key in ("db", "late")} == {"db": 1, "late": 0}
    assert (held(engine, "runs"), waiting(engine, "pool:db")) == (0, 0)
    with pytest.raises(LeaseLost, match="the lease of its run ended"):
        mine.step()
    assert granted(other.step())


@on_sqlite
def test_it_asks_and_without_an_answer_changes_nothing(cli: Cli, engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"db": 1}})
    holder = engine.acquire(engine.claim("db", op_id="load"))
    done = cli("free", holder.claim_id)
    assert (done.returncode, held(engine, "pool:db")) == (2, 1)
    assert "--yes" in done.stderr
    done = cli("free", "load", answer="n\n")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "Free? [y/N]: nothing was changed")
    assert held(engine, "pool:db") == 1
    done = cli("free", "load", answer="y\n")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "Free? [y/N]: freed 1")
    assert held(engine, "pool:db") == 0


@on_sqlite
def test_an_ambiguous_run_or_op_is_refused_and_the_candidates_are_named(
    cli: Cli, new_engine: NewEngine, configure: Configure
) -> None:
    configure(pools={"limits": {"db": 9}})
    engines = [new_engine(deployment=name, settings=CALM) for name in ("east", "west")]
    leases = [each.acquire(each.claim("db", run_id="r", op_id="load")) for each in engines]
    extra = engines[0].acquire(engines[0].claim("db", run_id="r", op_id="report"))
    for arguments in (("--run", "r"), ("r",), ("load",)):
        done = cli("free", *arguments, "--yes")
        assert (done.returncode, done.stdout) == (2, "")
        assert "process/east/r, process/west/r; name one with --run" in done.stderr
    assert held(engines[0], "pool:db") == 3
    assert json.loads(cli("free", "--run", "process/west/r", "--yes", "--json").stdout)["freed"] == [leases[1].claim_id]
    assert json.loads(cli("free", "load", "--run", "r", "--yes", "--json").stdout)["freed"] == [leases[0].claim_id]
    assert json.loads(cli("free", "report", "--yes", "--json").stdout)["freed"] == [extra.claim_id]


@on_sqlite
def test_a_run_that_is_called_as_another_ones_full_name_does_not_bar_that_one(
    cli: Cli, engine: Engine, configure: Configure
) -> None:
    configure(pools={"limits": {"db": 9}})
    plain = engine.acquire(engine.claim("db", run_id="r", op_id="a"))
    engine.acquire(engine.claim("db", run_id="process/process/r", op_id="a"))
    done = cli("free", "--run", "process/process/r", "--yes", "--json")
    assert json.loads(done.stdout)["freed"] == [plain.claim_id]


@on_sqlite
def test_nothing_matches_and_bad_usage(cli: Cli, engine: Engine) -> None:
    engine.acquire(engine.claim("db", run_id="r", op_id="a"))
    for arguments in (("nobody",), ("--run", "nobody"), ("b", "--run", "r"), ("",)):
        done = cli("free", *arguments, "--yes")
        assert (done.returncode, done.stdout) == (1, "")
        assert "holds nothing and waits for nothing" in done.stderr
    done = cli("free", "--yes")
    assert done.returncode == 2
    assert "name what is to be freed" in done.stderr


@on_sqlite
def test_what_ended_meanwhile_is_said(
    cli: Cli, engine: Engine, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    import click

    configure(pools={"limits": {"db": 1}})
    holder = engine.acquire(engine.claim("db", op_id="load"))

    def agree_late(_question: str) -> bool:
        holder.release()
        return True

    monkeypatch.setattr(click, "confirm", agree_late)
    assert cli("free", "load", answer="").stdout.endswith("freed 0, 1 had ended meanwhile\n")


def test_a_skipped_run_is_forgotten(engine: Engine, configure: Configure, store: Any) -> None:
    from penstock.freeing import chosen, free

    configure(runs={"max_concurrent_runs": 0})
    engine.request(engine.run_claim("r")).try_step(skip=True)
    assert len(free(engine, chosen(engine.snapshot(), "r", None))) == 1
    configure(runs={"max_concurrent_runs": 1})
    assert granted(engine.try_acquire(engine.run_claim("r")))
