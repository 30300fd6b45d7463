"""`penstock run`: hold slots while a command runs."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType

import click

from penstock.claim import Claim, parse_pools
from penstock.cli import EXIT_LOST, Seconds
from penstock.cli.orphans import Orphans, end_with_parent
from penstock.connection import connect_though_away
from penstock.engine import Engine
from penstock.errors import ClaimError, Skipped, StoreUnavailable
from penstock.lease import Lease
from penstock.settings import OnBlocked, Settings, StoreTimes
from penstock.text import shown
from penstock.waiting import Cancelled

KILL_GRACE_SECONDS = 5.0
REAP_SECONDS = 10.0
EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND = 126, 127


@click.command("run", context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.option("--pool", "pools", multiple=True, metavar="NAME[:SLOTS]", help="A pool to hold slots of; repeatable.")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="A tag of this op; repeatable.")
@click.option("--run-id", metavar="ID", help="The run that this belongs to: takes part in the run limits.")
@click.option("--run-tag", "run_tags", multiple=True, metavar="KEY=VALUE", help="A tag of the run; repeatable.")
@click.option("--op-id", metavar="ID", help="The name of this op within its run.")
@click.option("--priority", type=int, default=0, show_default=True, help="Higher goes first.")
@click.option("--on-blocked", type=click.Choice(["wait", "skip", "fail"]), default="wait", show_default=True)
@click.option("--wait-timeout", type=Seconds(min=0), metavar="SECONDS", help="Give up waiting after this.")
@click.option("--on-lost", type=click.Choice(["kill", "warn"]), default="kill", show_default=True)
@click.argument("command", nargs=-1, required=True)
@click.pass_obj
def command(
    store_url: str | None,
    pools: Sequence[str],
    tags: Sequence[str],
    run_id: str | None,
    run_tags: Sequence[str],
    op_id: str | None,
    priority: int,
    on_blocked: OnBlocked,
    wait_timeout: float | None,
    on_lost: str,
    command: Sequence[str],
) -> int:
    """Run COMMAND while holding slots; its exit code is ours. Put `--` before it."""
    if run_tags and run_id is None:
        raise click.UsageError("--run-tag needs --run-id")
    logging.getLogger("penstock").setLevel(logging.INFO)
    wanted, op_tags, tags_of_run = parse_pools(pools), _tags(tags), _tags(run_tags)
    waited = 0.0

    def acquire(claim: Claim) -> Lease:
        nonlocal waited
        left = None if wait_timeout is None else max(0.0, wait_timeout - waited)
        began = time.monotonic()
        lease = engine.acquire(claim, on_blocked=on_blocked, wait_timeout_seconds=left, cancelled=child.stopped)
        waited += time.monotonic() - began
        return lease

    with (
        _connected(store_url) as engine,
        _Child(on_lost, kill_seconds(engine.settings)) as child,
        contextlib.ExitStack() as held,
    ):
        try:
            if run_id is not None:
                lease = acquire(engine.run_claim(run_id, tags=tags_of_run, priority=priority))
                held.callback(_release, lease)
                child.guard(lease)
            op = engine.claim(
                wanted, tags=op_tags, priority=priority, run_id=run_id, op_id=op_id, in_run=run_id is not None
            )
            lease = acquire(op)
            held.callback(_release, lease)
            child.guard(lease)
            return child.run(command, lease)
        except Skipped as skipped:
            click.echo(f"penstock: skipped, {shown(str(skipped))}", err=True)
            return 0
        except Cancelled:
            return child.exit_code_when_stopped()


def kill_seconds(settings: Settings) -> float:
    """How long a command has to end when its lease is lost: it is killed before others can be granted its slots."""
    return min(KILL_GRACE_SECONDS, settings.margin_seconds + StoreTimes().grace_seconds - 0.5)


@contextlib.contextmanager
def _connected(store_url: str | None) -> Iterator[Engine]:
    """An engine whose end does not hide how the command ended."""
    engine = connect_though_away(store_url)
    try:
        yield engine
    finally:
        try:
            engine.close()
        except StoreUnavailable as error:
            _say_left_behind(error)


def _release(lease: Lease) -> None:
    try:
        lease.release()
    except StoreUnavailable as error:
        _say_left_behind(error)


def _say_left_behind(error: StoreUnavailable) -> None:
    """The command has run and its exit code counts; what could not be given back comes back by expiry."""
    click.echo(
        f"penstock: the slots could not be given back now, they are freed by expiry: {shown(str(error))}", err=True
    )


def _tags(texts: Sequence[str]) -> dict[str, str]:
    tags = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ClaimError(f"tag {text!r}: write it as KEY=VALUE")
        if key in tags:
            raise ClaimError(f"tag {key!r} is given twice; give it once")
        tags[key] = value
    return tags


class _Child:
    """The command: gets our signals, is ended when a lease under it is lost. `stopped` ends a wait for slots, too."""

    def __init__(self, on_lost: str, kill_seconds: float) -> None:
        self._kills, self._kill_seconds = on_lost == "kill", kill_seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._lost = False
        self._kill_at: float | None = None
        self._signal_number: int | None = None
        self.stopped = threading.Event()

    def __enter__(self) -> _Child:
        # A handler runs in the middle of whatever the main thread does, even inside the lock of the event that it waits
        # for; so it only writes to a pipe, and a thread of its own does the rest.
        self._reader, self._writer = os.pipe()
        threading.Thread(target=self._forward, args=(self._reader,), name="penstock-signals", daemon=True).start()
        self._before = {
            number: signal.signal(number, self._note)
            for number in (signal.SIGTERM, signal.SIGINT)
            if signal.getsignal(number) is not signal.SIG_IGN  # as in a background job; the command ignores it, too
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._writer)  # ends the thread, which closes the other end

    def _note(self, number: int, _frame: FrameType | None) -> None:
        os.write(self._writer, bytes([number]))

    def _forward(self, reader: int) -> None:
        while received := os.read(reader, 1):
            with self._lock:
                self._signal_number = received[0]
                self.stopped.set()
                if self._process is not None:
                    self._process.send_signal(self._signal_number)
        os.close(reader)

    def guard(self, lease: Lease) -> None:
        """End the command (or warn) when this lease is lost."""
        lease.on_lost.append(self._when_lost)

    def _when_lost(self, lease: Lease) -> None:
        with self._lock:
            if self._lost:
                return
            self._lost = True
            if self._kills:
                self._kill_at = time.monotonic() + self._kill_seconds
                self.stopped.set()
            process = self._process
        what = "is killed" if self._kills else "goes on"
        click.echo(f"penstock: {lease.claim}: the lease is lost; the command {what}", err=True)
        if process is not None and self._kills:
            process.terminate()
            killer = threading.Timer(self._kill_seconds, process.kill)
            killer.daemon = True
            killer.start()

    def exit_code_when_stopped(self) -> int:
        """The exit code when the command was not begun, or was ended by us."""
        return EXIT_LOST if self._signal_number is None else 128 + self._signal_number

    def run(self, command: Sequence[str], lease: Lease) -> int:
        """Run the command to its end and return the exit code to pass on."""
        environment = {
            **os.environ,
            "PENSTOCK_LEASE_ID": lease.claim_id,
            "PENSTOCK_FENCES": json.dumps(lease.fences),
        }
        with Orphans() as orphans:
            with self._lock:  # what stops us comes before the command begins, or finds it
                if self.stopped.is_set():
                    return self.exit_code_when_stopped()
                try:
                    self._process = process = subprocess.Popen(
                        list(command),
                        env=environment,
                        preexec_fn=end_with_parent,  # noqa: PLW1509  # it takes no lock and imports nothing
                    )
                except FileNotFoundError:
                    click.echo(f"penstock: {shown(command[0])}: not found", err=True)
                    return EXIT_NOT_FOUND
                except OSError as error:
                    click.echo(f"penstock: {shown(command[0])}: cannot be executed: {error.strerror}", err=True)
                    return EXIT_NOT_EXECUTABLE
            code = _wait(process, orphans)
            if self.stopped.is_set():
                left = KILL_GRACE_SECONDS if self._kill_at is None else self._kill_at - time.monotonic()
                orphans.end(self._signal_number or signal.SIGTERM, left)
        if self._lost and self._kills:
            return EXIT_LOST
        return code if code >= 0 else 128 - code


def _wait(process: subprocess.Popen[bytes], orphans: Orphans) -> int:
    """The command's exit code. Those whom it leaves behind while it lives do not pile up as dead meanwhile."""
    if hasattr(os, "pidfd_open"):
        handle = os.pidfd_open(process.pid)
        try:
            while not select.select([handle], [], [], REAP_SECONDS)[0]:
                orphans.reap(process.pid)
        finally:
            os.close(handle)
    return process.wait()
