"""`penstock demo`: both hosts on one store, for real."""

from __future__ import annotations

import json
import signal
import sys
from types import FrameType

import click
from rich.console import Console

from penstock.cli import EXIT_NO, json_option
from penstock.demo.picture import story_table
from penstock.demo.play import Demo
from penstock.demo.processes import HostFailed


@click.command("demo")
@json_option
def command(as_json: bool) -> int:
    """Run a real Airflow DAG and a real Prefect flow under the limits of one dagster.yaml block.

    Makes two environments below PENSTOCK_HOME at its first run (about a minute), then takes one or two minutes. Exit 0
    only if no limit was passed, each was reached, and both hosts took part.
    """
    signal.signal(signal.SIGTERM, _leave)
    console = Console(stderr=as_json, width=None if sys.stdout.isatty() else 120)
    try:
        verdict = Demo(console).perform()
    except HostFailed as error:
        click.echo(f"penstock: {error}", err=True)
        return EXIT_NO
    if as_json:
        stories = {
            key: {
                "capacity": story.capacity,
                "most_held": story.most_held,
                "grants": dict(story.grants),
                "longest_wait_seconds": max(story.waits, default=0.0),
            }
            for key, story in verdict.stories.items()
        }
        click.echo(json.dumps({"ok": not verdict.faults, "limits": stories, "faults": verdict.faults}))
    else:
        console.print()
        console.print(story_table(verdict.stories))
        for fault in verdict.faults:
            console.print(f"[red]not as promised:[/] {fault}")
        if not verdict.faults:
            console.print("No limit was passed, each was reached, and both hosts took part.")
    return EXIT_NO if verdict.faults else 0


def _leave(number: int, _frame: FrameType | None) -> None:
    """Told to stop: leave by the way on which everything that was started is ended."""
    raise SystemExit(128 + number)
