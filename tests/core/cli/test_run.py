"""`penstock run`: slots held while a command runs, in real processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import penstock
import pytest
from click.testing import CliRunner
from penstock import changes
from penstock.cli import penstock as cli
from penstock.cli.orphans import Orphans
from penstock.cli.run_command import kill_seconds
from penstock.config import Concurrency
from penstock.engine import Engine
from penstock.errors import StoreUnavailable
from penstock.settings import Settings, StoreTimes
from penstock.store.sql import SqlStore

pytestmark = pytest.mark.parametrize("store_kind", ["sqlite", "postgresql"], indirect=True)
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def engine(store_url: str) -> Iterator[Engine]:
    with penstock.connect(store_url) as engine:
        block = {"pools": {"limits": {"a": 1}}, "runs": {"max_concurrent_runs": 1}}
        changes.apply(engine, Concurrency.model_validate(block), expected_version=0)
        yield engine


@pytest.fixture
def start(store_url: str, engine: Engine) -> Iterator[Start]:
    children: list[subprocess.Popen[str]] = []

    def run(*arguments: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "penstock", "--store", store_url, "run", *arguments]
        child = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        children.append(child)
        return child

    yield run
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


def until(condition: Callable[[], Any], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the state did not come"
        time.sleep(0.02)


def end_session(engine: Engine, pid: int) -> None:
    """As if it had been reaped."""
    (session,) = [row for row in engine.store.snapshot().sessions if row.session.pid == pid]
    engine.store.close_session(session.session.session_id)


def held(engine: Engine) -> int:
    return {row.key: row.held for row in engine.store.limit_rows()}["pool:a"]


@pytest.mark.parametrize(("code", "expected"), [("0", 0), ("3", 3), ("137", 137)])
def test_the_exit_code_is_the_commands(start: Start, engine: Engine, code: str, expected: int) -> None:
    assert start("--pool", "a", "--", "sh", "-c", f"exit {code}").wait(60) == expected
    assert held(engine) == 0


def test_a_command_ended_by_a_signal_not_found_or_not_executable(start: Start, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("no program")
    assert start("--pool", "a", "--", "sh", "-c", "kill -9 $$").wait(60) == 128 + 9
    assert start("--pool", "a", "--", str(tmp_path / "absent")).wait(60) == 127
    assert start("--pool", "a", "--", str(plain)).wait(60) == 126


def test_the_command_sees_its_lease_and_its_fences(start: Start) -> None:
    out, _ = start("--pool", "a", "--", "sh", "-c", 'echo "$PENSTOCK_LEASE_ID"; echo "$PENSTOCK_FENCES"').communicate()
    lease_id, fences = out.splitlines()
    assert len(lease_id) == 36
    assert json.loads(fences)["pool:a"].keys() == {"1"}


def test_bad_usage(start: Start) -> None:
    for arguments in (
        ["--pool", "a"],
        ["--pool", "a:0", "--", "true"],
        ["--tag", "x", "--", "true"],
        ["--pool", "a", "--wait-timeout", "nan", "--", "true"],
        ["--run-tag", "a=b", "--", "true"],
        ["--pool", "a", "--pool", "a", "--", "true"],
        ["--tag", "k=1", "--tag", "k=2", "--", "true"],
    ):
        assert start(*arguments).wait(60) == 2


def test_blocked_skip_fail_time_out_impossible(start: Start, engine: Engine) -> None:
    with engine.hold("a"):
        skipped = start("--pool", "a", "--on-blocked", "skip", "--", "false")
        assert skipped.wait(60) == 0
        assert skipped.stderr is not None
        assert "skipped" in skipped.stderr.read()
        assert start("--pool", "a", "--on-blocked", "fail", "--", "true").wait(60) == 75
        assert start("--pool", "a", "--wait-timeout", "0.1", "--", "true").wait(60) == 75
    assert start("--pool", "a:2", "--", "true").wait(60) == 75


def test_it_waits_and_says_for_what(start: Start, engine: Engine) -> None:
    with engine.hold("a"):
        child = start("--pool", "a", "--op-id", "load", "--", "echo", "ran")
        assert child.stderr is not None
        assert "load waits: a: 1 of 1 held by process/process" in child.stderr.readline()
    out, _ = child.communicate(timeout=60)
    assert out == "ran\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_go_to_the_command_and_free_the_slots_after_it(start: Start, engine: Engine, number: int) -> None:
    script = "import signal,sys,time; signal.signal(%d, lambda *_: sys.exit(7)); print('up', flush=True)"
    child = start("--pool", "a", "--", sys.executable, "-c", f"{script % number}; time.sleep(60)")
    assert child.stdout is not None
    assert child.stdout.readline() == "up\n"
    assert held(engine) == 1
    os.kill(child.pid, number)
    assert child.wait(60) == 7
    assert held(engine) == 0


def test_sigterm_ends_a_waiter_which_leaves_the_queue(start: Start, engine: Engine) -> None:
    with engine.hold("a"):
        child = start("--pool", "a", "--", "touch", "/nonexistent/never")
        until(lambda: engine.status()["waiters"])
        child.terminate()
        assert child.wait(60) == 128 + signal.SIGTERM
        assert engine.status()["waiters"] == []


def test_runs_of_one_id_share_a_run_lease(start: Start, engine: Engine) -> None:
    first = start("--run-id", "r", "--run-tag", "team=x", "--", "sh", "-c", "echo up; sleep 60")
    assert first.stdout is not None
    assert first.stdout.readline() == "up\n"
    assert start("--run-id", "r", "--", "true").wait(60) == 0
    assert start("--run-id", "other", "--on-blocked", "fail", "--", "true").wait(60) == 75


def test_a_lost_lease_kills_the_command(start: Start, engine: Engine) -> None:
    child = start("--pool", "a", "--", "sh", "-c", "echo up; exec sleep 60")
    assert child.stdout is not None
    assert child.stdout.readline() == "up\n"
    end_session(engine, child.pid)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 76
    assert "the lease is lost" in err


LEAVES_TWO = "(trap '' TERM; echo $BASHPID; exec sleep 60) & sleep 61 & echo $!; wait"
"""A shell that dies of SIGTERM, and leaves behind one who heeds it and one who does not."""


def is_alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.parametrize("lost", [False, True])
def test_no_slot_is_given_back_while_those_are_at_work_whom_the_command_has_begun(
    start: Start, engine: Engine, lost: bool
) -> None:
    child = start("--pool", "a", "--", "bash", "-c", LEAVES_TWO)
    assert child.stdout is not None
    left = [int(child.stdout.readline()) for _ in range(2)]
    if lost:
        end_session(engine, child.pid)
    else:
        child.send_signal(signal.SIGTERM)
        until(lambda: not held(engine))
        assert not any(map(is_alive, left))
    assert child.wait(60) == (76 if lost else 128 + signal.SIGTERM)
    assert not any(map(is_alive, left))


def test_what_a_command_leaves_running_that_ends_by_itself_is_left_alone(start: Start) -> None:
    child = start("--pool", "a", "--", "sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!")
    assert child.stdout is not None
    left = int(child.stdout.readline())
    assert child.wait(60) == 0
    assert is_alive(left)
    os.kill(left, signal.SIGKILL)


def test_the_dead_whom_a_command_leaves_behind_are_buried_while_it_runs(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Orphans() as orphans:
        command = subprocess.Popen(["sh", "-c", "(sleep 0 & echo $!); read line"], stdin=-1, stdout=-1, text=True)
        assert command.stdin is not None
        assert command.stdout is not None
        left = int(command.stdout.readline())
        until(lambda: not is_alive(left))
        assert Path(f"/proc/{left}").exists()
        orphans.reap(command.pid)
        assert not Path(f"/proc/{left}").exists()
        command.communicate("\n")
        assert command.returncode == 0


@pytest.mark.parametrize("ttl_seconds", [1, 2, 5, 10, 30, 60, 3600])
def test_a_command_is_killed_before_others_can_have_its_slots(store_kind: str, ttl_seconds: float) -> None:
    settings = Settings(session_ttl_seconds=ttl_seconds)
    lost_at = ttl_seconds - settings.margin_seconds
    assert 0 < kill_seconds(settings) <= 5.0
    assert lost_at + kill_seconds(settings) < ttl_seconds + StoreTimes().grace_seconds


def test_with_warn_the_command_goes_on_without_its_lease(start: Start, engine: Engine) -> None:
    child = start(
        "--pool", "a", "--on-lost", "warn", "--", "sh", "-c", "echo up; read line; exit 5", stdin=subprocess.PIPE
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    assert child.stdout.readline() == "up\n"
    end_session(engine, child.pid)
    while "goes on" not in (line := child.stderr.readline()):
        assert line, "it ended without a warning"
    child.stdin.write("\n")
    child.stdin.flush()
    assert child.wait(60) == 5


def test_a_run_lease_lost_while_its_op_waits_ends_the_wait(start: Start, engine: Engine, tmp_path: Path) -> None:
    began = tmp_path / "began"
    with engine.hold("a"):
        child = start("--run-id", "r", "--pool", "a", "--", "touch", str(began))
        until(lambda: engine.status()["waiters"])
        end_session(engine, child.pid)
        assert child.wait(60) == 76
    assert not began.exists()


def test_a_signal_that_was_ignored_stays_ignored(start: Start, store_url: str) -> None:
    script = "import signal; print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    run = [sys.executable, "-m", "penstock", "--store", store_url, "run", "--pool", "a", "--"]
    done = subprocess.run(
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *run, sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "True\n", done.stderr


def test_slots_that_cannot_be_given_back_do_not_hide_the_commands_exit_code(
    engine: Engine, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> bool:
        raise StoreUnavailable("the store is away")

    monkeypatch.setattr(SqlStore, "release", away)
    monkeypatch.setattr(SqlStore, "close_session", away)
    arguments = ["--store", store_url, "run", "--pool", "a", "--", "sh", "-c", "exit 4"]
    done = CliRunner().invoke(cli, arguments, standalone_mode=False)
    assert done.return_value == 4, done.exception
    assert "freed by expiry" in done.stderr
    monkeypatch.undo()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_the_command_does_not_outlive_a_killed_penstock(start: Start, engine: Engine) -> None:
    child = start("--pool", "a", "--", "sh", "-c", "echo $$; exec sleep 60")
    assert child.stdout is not None
    command = int(child.stdout.readline())
    child.kill()
    child.wait(60)

    def gone() -> bool:
        with contextlib.suppress(FileNotFoundError):
            return Path(f"/proc/{command}/stat").read_text().split()[2] == "Z"
        return True

    until(gone)
