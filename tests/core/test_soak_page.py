"""The soak's judge finds what must not be, and its page is written from what was kept."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import penstock
import pytest
from configuring import configure
from soak import __main__ as page
from soak import judging, record, witness
from soak.load import Unit
from soak.witness import Hold, Witness

BEGAN, OVER = 100.0, 130.0


def hold(began: float, ended: float | None, *, run: str = "one", op: str = "load", **facts: Any) -> Hold:
    given = {"host": "airflow", "slots": {"pool:p": 1}, "run_slots": {}, "pid": 1, **facts}
    return Hold(run=run, op=op, began=began, ended=ended, **given)


def test_what_is_held_at_the_same_time_by_all_hosts_counts_together() -> None:
    beside = [hold(100, 110), hold(105, 115, run="two", host="prefect")]
    assert judging.violations(beside, {"pool:p": 2}) == []
    (found,) = judging.violations(beside, {"pool:p": 1})
    assert found.startswith("pool:p, more than 1 at 105.000")
    assert judging.violations([hold(100, 105), hold(105, 115, run="two")], {"pool:p": 1}) == []


def test_what_was_killed_held_until_it_was_dead() -> None:
    killed = hold(100, None, died=108.0)
    assert judging.violations([killed, hold(107, 110, run="two")], {"pool:p": 1})
    assert not judging.violations([killed, hold(108.5, 110, run="two")], {"pool:p": 1})
    with pytest.raises(AssertionError, match="it has not ended"):
        judging.violations([hold(100, None)], {"pool:p": 1})


def test_a_run_holds_between_its_tasks_too() -> None:
    first, last = (
        hold(*at, op=op, slots={}, run_slots={"runs": 1}) for at, op in (((100, 102), "a"), ((110, 112), "b"))
    )
    other = hold(105, 106, run="two", slots={}, run_slots={"runs": 1})
    assert judging.violations([first, last, other], {"runs": 1})
    assert not judging.violations([first, last, other], {"runs": 2})


def test_a_step_is_never_at_work_twice() -> None:
    (found,) = judging.violations([hold(100, 110), hold(105, 106)], {"pool:p": 5})
    assert found.startswith("one load twice at the same time")


def test_all_must_end_well_and_each_step_be_done() -> None:
    well = Unit("airflow", "one", ("load",), state="success")
    assert judging.undone([well], [hold(100, 110)]) == []
    assert judging.undone([well], [hold(100, None, died=101.0)])
    assert judging.undone([Unit("airflow", "one", ("load",), state="failed")], [hold(100, 110)])


def test_what_is_left_in_the_store_is_told(postgresql_url: str) -> None:
    from penstock.store.sql import SqlStore
    from servers import fresh_database

    with fresh_database(postgresql_url) as url:
        store = SqlStore(url)
        store.upgrade()
        store.close()
        with penstock.connect(url) as engine:
            configure(engine, pools={"limits": {"p": 1}})
            with engine.hold("p"):
                left = judging.left_over(url, seconds=0)
            assert [what.partition(":")[0] for what in left] == ["live claims", "slots held"]
            assert judging.left_over(url, seconds=0) == []


def test_the_witness_sees_a_killed_holder_die(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holds = tmp_path / "holds"
    holds.touch()
    script = Path(judging.__file__).parent / "holders" / "holding.py"

    def started(seconds: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-S", script, "command", "one", seconds, '{"pool:p": 1}']
        return subprocess.Popen(command, env=os.environ | {"SOAK_HOLDS": str(holds)})

    with Witness(holds) as witness:
        assert started("0").wait(30) == 0
        child = started("60")
        while not witness.living("penstock run"):
            time.sleep(0.01)
        assert witness.has_process("one")
        before = time.monotonic()
        child.kill()
        child.wait()
        while witness.living("penstock run"):
            time.sleep(0.01)
        assert not witness.has_process("one")
    ended, killed = witness.holds
    assert ended.ended is not None
    assert killed.ended is None
    assert killed.until is not None
    assert before <= killed.until <= time.monotonic()


def test_who_is_let_in_before_the_witness_sees_a_death_passes_no_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(witness, "LOOK_SECONDS", 0.5)
    holds = tmp_path / "holds"
    holds.touch()
    script = Path(judging.__file__).parent / "holders" / "holding.py"
    command = [sys.executable, "-S", script, "command", "one", "60", '{"pool:p": 1}']
    with Witness(holds) as seen:
        child = subprocess.Popen(command, env=os.environ | {"SOAK_HOLDS": str(holds)})
        while not (living := seen.living("penstock run")):
            time.sleep(0.01)
        before = time.monotonic()
        with ThreadPoolExecutor(1) as killing:
            killed = killing.submit(seen.kill, living[0])
            child.wait()
            let_in = hold(time.monotonic(), time.monotonic() + 5, run="two")
            at = killed.result()
        assert seen.kill(living[0]) is None
    assert at is not None
    assert before <= at <= let_in.began
    assert living[0].died == at
    assert judging.violations([*living, let_in], {"pool:p": 1}) == []


def soak() -> record.Soak:
    """A small one."""
    held = [hold(100, 110), hold(112, None, died=120.0)]
    limits = judging.seen(held, (), {"pool:p": 1}, {"pool:p": 1}, BEGAN, OVER, OVER)
    return record.Soak(
        at=0.0,
        minutes=0.5,
        seconds=30.0,
        fed_seconds=30.0,
        versions={"the store": "PostgreSQL 15", "Airflow": "3"},
        holds=2,
        cut_short=1,
        expired=1,
        limits=tuple(limits),
        hosts=(
            record.HostSeen(
                host="airflow", what="DAG runs", begun=1, well=1, retries=1, leases=2, longest_wait_seconds=0.5
            ),
        ),
        faults=(
            record.FaultSeen(kind="Airflow task", how="kill -9", at=20.0, seconds=None),
            record.FaultSeen(kind="PostgreSQL of the store", how="fast", at=65.0, seconds=1.5),
        ),
        violations=0,
        left_over=0,
        undone=0,
        losses=0,
    )


def test_a_limit_is_told_with_how_much_of_it_was_used() -> None:
    (limit,) = soak().limits
    assert limit.most_held == 1
    assert round(limit.used_percent) == 60
    assert max(limit.most) == 1
    assert limit.held[0] == 1.0
    assert limit.held[-1] == 0.0


def test_what_was_kept_is_read_again(tmp_path: Path) -> None:
    soak().keep(tmp_path / "results.json")
    assert record.read(tmp_path / "results.json") == soak()
    assert record.read(tmp_path / "none.json") is None


def test_tables_and_picture_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "soak.md"
    target.write_text(f"before\n{page.BEGIN}\nwhat was\n{page.END}\nafter\n")
    monkeypatch.setattr(page, "PAGE", target)
    monkeypatch.setattr(page, "PICTURE", target.with_suffix(".svg"))
    monkeypatch.setattr(page, "read", soak)
    page.main()
    written = target.read_text()
    assert written.startswith("before\n")
    assert "what was" not in written
    assert "1970-01-01; Airflow 3, PostgreSQL 15; short form" in written
    assert "| `pool:p` | 1 | 0 | 1 | 1 | 60 % |" in written
    assert "| PostgreSQL of the store | fast | 1 | 2 s | 1:05 |" in written
    assert "pool:p" in target.with_suffix(".svg").read_text()


def test_the_page_has_its_marks_and_says_how_long_a_soak_is() -> None:
    text = page.PAGE.read_text()
    assert text.count(page.BEGIN) == text.count(page.END) == 1
    assert f"# {record.SHORT_MINUTES:.0f} minutes" in text
    assert f"# {record.LONG_MINUTES:.0f} minutes" in text
