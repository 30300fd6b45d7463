"""`penstock janitor`: steady upkeep of a store."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import time
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from types import FrameType

import click

import penstock
from penstock.cli import Seconds, json_option
from penstock.connection import connect_though_away
from penstock.engine import Engine
from penstock.errors import StoreUnavailable
from penstock.report import lasting

log = logging.getLogger("penstock.janitor")
DONE = {
    "expired": "ended {} that nobody stood behind any more",
    "runs_ended": "ended {} whose host says that the run is over",
    "granted": "granted {}",
    "history": "dropped {} rows of history",
    "limits": "dropped {} idle limits",
}


@click.command("janitor")
@click.option("--once", is_flag=True, help="Do one round, say what it did, and end.")
@click.option(
    "--interval",
    type=Seconds(min=0.1, max=3600),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to rest between two rounds.",
)
@json_option
@click.pass_obj
def command(store_url: str | None, once: bool, interval: float, as_json: bool) -> None:
    """Reap what died, ask after runs, grant what is free, prune; until SIGTERM or SIGINT.

    Every engine does this now and then; a janitor does it steadily, also while nobody else is at work. Several beside
    each other do no harm. A line says what a round did, if it did something.
    """
    with (penstock.connect if once else connect_though_away)(store_url) as engine:
        if once:
            _say(_round(engine), as_json)
            return
        with _until_signal() as stopped:
            while True:
                began = time.monotonic()
                try:
                    did = _round(engine)
                    if any(did.values()):
                        _say(did, as_json)
                except StoreUnavailable as error:
                    log.warning("the store is away, trying again in %s: %s", lasting(interval), error)
                if stopped(max(0.0, began + interval - time.monotonic())):
                    return


def _round(engine: Engine) -> dict[str, int]:
    granted = 0

    def count(claim_ids: Collection[str]) -> None:
        nonlocal granted
        granted += len(claim_ids)

    engine.store.check_schema()  # it may have been away until now, or have been upgraded since
    engine.store.on_granted.append(count)
    try:
        did = engine.janitor.upkeep()
    finally:
        engine.store.on_granted.remove(count)
    return {"expired": did["expired"], "runs_ended": did["runs_ended"], "granted": granted, **did}


def _say(did: dict[str, int], as_json: bool) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    if as_json:
        click.echo(json.dumps({"at": now, **did}))
    else:
        done = "; ".join(DONE[name].format(count) for name, count in did.items() if count)
        click.echo(f"{now} {done or 'nothing to do'}")


@contextlib.contextmanager
def _until_signal() -> Iterator[Callable[[float], bool]]:
    """A function that rests for some seconds and says whether SIGTERM or SIGINT has come, before it or meanwhile.

    The handler only writes to a pipe: it may run in the middle of anything.
    """
    reader, writer = os.pipe()

    def note(_number: int, _frame: FrameType | None) -> None:
        os.write(writer, b".")

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda seconds: bool(select.select([reader], [], [], seconds)[0])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)
