"""`penstock export`: limits in the form of another tool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

import penstock
from penstock.cli.import_command import DEFAULT_POOL
from penstock.cli.text import shown
from penstock.config import Concurrency

UNLIMITED = -1  # of an Airflow pool


@click.group("export")
def command() -> None:
    """Write the limits in the form of another tool."""


@command.command("airflow-pools")
@click.option("-o", "--output", type=click.Path(dir_okay=False), metavar="FILE", help="Else stdout.")
@click.option(
    "--slots",
    type=click.Choice(["unlimited", "same"]),
    default="unlimited",
    show_default=True,
    help="How wide Airflow's own pools are to be; `same` is as wide as the limits here.",
)
@click.option("--default-pool", is_flag=True, help="Also `default_pool`, which every task is in that names no pool.")
@click.pass_obj
def airflow_pools(store_url: str | None, output: str | None, slots: str, default_pool: bool) -> None:
    """Write a pool for each explicit limit, as `airflow pools import` takes it.

    Airflow never schedules a task whose pool it does not have, and goes on gating by its own slots: left unlimited,
    it leaves the limits and the queue to Penstock.
    """
    with penstock.connect(store_url) as engine:
        pools = _airflow_pools(engine.configuration(fresh=True)[1], wide=slots == "unlimited")
    if not default_pool:
        pools.pop(DEFAULT_POOL, None)
    text = json.dumps(pools, indent=4, sort_keys=True)
    if output is None:
        click.echo(text)
        return
    try:
        Path(output).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise click.FileError(output, error.strerror) from None
    click.echo(f"{shown(output)}: {len(pools)} pool{'' if len(pools) == 1 else 's'}", err=True)


def _airflow_pools(concurrency: Concurrency, *, wide: bool) -> dict[str, dict[str, Any]]:
    """Name → slots, description, include_deferred. A task that waits for Penstock is deferred: it must take none."""
    return {
        name: {
            "slots": UNLIMITED if wide else pool.limit,
            "description": pool.description or "limited by Penstock",
            "include_deferred": False,
        }
        for name, pool in concurrency.pools.limits.items()
    }
