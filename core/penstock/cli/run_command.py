"""`penstock run`: hold slots while a command runs."""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from types import FrameType

import click

import penstock
from penstock.claim import parse_pools
from penstock.cli import EXIT_LOST
from penstock.engine import Engine, OnBlocked
from penstock.errors import ClaimError, Skipped
from penstock.lease import Lease
from penstock.request import Cancelled

KILL_GRACE_SECONDS = 5.0
EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND = 126, 127


@click.command("run", context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.option("--pool", "pools", multiple=True, metavar="NAME[:SLOTS]", help="A pool to hold slots of; repeatable.")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="A tag of this op; repeatable.")
@click.option("--run-id", metavar="ID", help="The run that this belongs to: takes part in the run limits.")
@click.option("--run-tag", "run_tags", multiple=True, metavar="KEY=VALUE", help="A tag of the run; repeatable.")
@click.option("--op-id", metavar="ID", help="The name of this op within its run.")
@click.option("--priority", type=int, default=0, show_default=True, help="Higher goes first.")
@click.option("--on-blocked", type=click.Choice(["wait", "skip", "fail"]), default="wait", show_default=True)
@click.option("--wait-timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Give up waiting after this.")
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
    wanted = parse_pools(pools)
    with penstock.connect(store_url) as engine, _Child(engine, on_lost) as child:
        try:
            with contextlib.ExitStack() as held:
                if run_id is not None:
                    claim = engine.run_claim(run_id, tags=_tags(run_tags), priority=priority)
                    lease = engine.acquire(
                        claim, on_blocked=on_blocked, wait_timeout_seconds=wait_timeout, cancelled=child.told_to_stop
                    )
                    child.guard(held.enter_context(lease))
                op = engine.claim(
                    wanted, tags=_tags(tags), priority=priority, run_id=run_id, op_id=op_id, in_run=run_id is not None
                )
                lease = engine.acquire(
                    op, on_blocked=on_blocked, wait_timeout_seconds=wait_timeout, cancelled=child.told_to_stop
                )
                child.guard(held.enter_context(lease))
                return child.run(command, lease)
        except Skipped as skipped:
            click.echo(f"penstock: skipped, {skipped}", err=True)
            return 0
        except Cancelled:
            return 128 + child.signal_number


def _tags(texts: Sequence[str]) -> dict[str, str]:
    tags = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ClaimError(f"tag {text!r}: write it as KEY=VALUE")
        tags[key] = value
    return tags


def _prctl() -> Callable[[int, int], int] | None:
    try:
        function: Callable[[int, int], int] = ctypes.CDLL(None).prctl
    except AttributeError:
        return None
    return function


_PRCTL = _prctl()  # looked up before any fork


def _end_with_parent() -> None:
    """In the new command: be killed when `penstock run` is killed, since nobody would hold its slots then (Linux)."""
    if _PRCTL is not None:
        _PRCTL(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class _Child:
    """The command: gets our signals, and is ended when a lease under it is lost."""

    def __init__(self, engine: Engine, on_lost: str) -> None:
        self._engine, self._on_lost = engine, on_lost
        self._process: subprocess.Popen[bytes] | None = None
        self._lost = threading.Event()
        self.told_to_stop = threading.Event()
        self.signal_number = 0

    def __enter__(self) -> _Child:
        self._before = {number: signal.signal(number, self._forward) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        self.signal_number = number
        self.told_to_stop.set()
        if self._process is not None:
            self._process.send_signal(number)

    def guard(self, lease: Lease) -> None:
        """End the command (or warn) when this lease is lost."""
        lease.on_lost.append(self._when_lost)

    def _when_lost(self, lease: Lease) -> None:
        if self._on_lost == "warn":
            click.echo(f"penstock: {lease.claim.label}: the lease is lost; the command goes on", err=True)
            return
        click.echo(f"penstock: {lease.claim.label}: the lease is lost; the command is killed", err=True)
        self._lost.set()
        process = self._process
        if process is not None:
            process.terminate()
            killer = threading.Timer(KILL_GRACE_SECONDS, process.kill)
            killer.daemon = True
            killer.start()

    def run(self, command: Sequence[str], lease: Lease) -> int:
        """Run the command to its end and return the exit code to pass on."""
        environment = {
            **os.environ,
            "PENSTOCK_LEASE_ID": lease.claim_id,
            "PENSTOCK_FENCES": json.dumps(lease.fences),
        }
        if self.told_to_stop.is_set():
            return 128 + self.signal_number
        try:
            self._process = process = subprocess.Popen(
                list(command),
                env=environment,
                preexec_fn=_end_with_parent,  # noqa: PLW1509  # it takes no lock and imports nothing
            )
        except FileNotFoundError:
            click.echo(f"penstock: {command[0]}: not found", err=True)
            return EXIT_NOT_FOUND
        except OSError as error:
            click.echo(f"penstock: {command[0]}: cannot be executed: {error.strerror}", err=True)
            return EXIT_NOT_EXECUTABLE
        if self.told_to_stop.is_set():  # it came before there was anybody to forward it to
            process.send_signal(self.signal_number)
        if lease.lost:
            self._when_lost(lease)
        code = process.wait()
        if self._lost.is_set():
            return EXIT_LOST
        return code if code >= 0 else 128 - code
