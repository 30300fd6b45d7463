"""`penstock export`: the limits as a file of Penstock's own, or in the form of another tool."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

import penstock
from penstock.cli.foreign import show
from penstock.cli.output import write_whole
from penstock.config import Concurrency, Granularity
from penstock.config_writer import written
from penstock.errors import Fault
from penstock.text import shown

DEFAULT_POOL = "default_pool"
UNLIMITED = -1  # of an Airflow pool


@click.group("export")
def command() -> None:
    """Write the limits as a penstock.yaml, or in the form of another tool."""


@command.command("file")
@click.option("-o", "--output", type=click.Path(dir_okay=False), metavar="FILE", help="Else stdout.")
@click.pass_obj
def file(store_url: str | None, output: str | None) -> None:
    """Write the configuration in force as `penstock apply` takes it: to keep it, or to go on from a file.

    Limits may have been set by commands or on the page, and then stand in the store alone.
    """
    with penstock.connect(store_url) as engine:
        version, concurrency = engine.configuration(fresh=True)
    text = written(concurrency, {}, [f"version {version} of the store's configuration"])
    if output is None:
        click.echo(text, nl=False)
        return
    write_whole(output, text)
    click.echo(f"{shown(output)}: version {version}", err=True)


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
        concurrency = engine.configuration(fresh=True)[1]
    pools = _airflow_pools(concurrency, wide=slots == "unlimited")
    show(output or "the pools", [] if slots == "unlimited" else [*_left_out(concurrency)], [*_notes(concurrency)])
    if not default_pool:
        pools.pop(DEFAULT_POOL, None)
    text = json.dumps(pools, indent=4, sort_keys=True)
    if output is None:
        click.echo(text)
        return
    write_whole(output, text + "\n")
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


def _notes(concurrency: Concurrency) -> Iterator[str]:
    if concurrency.pools.default_limit is not None:
        yield (
            "Pools on the default limit are not known by name and not in it: "
            "Airflow never schedules a task whose pool it does not have."
        )


def _left_out(concurrency: Concurrency) -> Iterator[Fault]:
    """The limits that Airflow's own pools cannot have, where they are to limit instead of Penstock."""
    pools, runs, ops = concurrency.pools, concurrency.runs, concurrency.ops
    per_dag = "Airflow bounds the runs and tasks of one DAG: `max_active_runs`, `max_active_tasks`"
    for path, is_set, why in (
        ("pools.default_limit", pools.default_limit is not None, "name each pool, with `penstock pools set`"),
        ("runs.max_concurrent_runs", runs.capacity is not None, per_dag),
        ("runs.tag_concurrency_limits", bool(runs.tag_concurrency_limits), per_dag),
        ("ops.max_concurrent", ops.max_concurrent is not None, per_dag),
        ("ops.tag_concurrency_limits", bool(ops.tag_concurrency_limits), per_dag),
    ):
        if is_set:
            yield Fault(why, path=f"concurrency.{path}")
    for name in pools.limits:
        if concurrency.pool_granularity(name) is Granularity.RUN:
            yield Fault("a pool of Airflow counts tasks, not runs", path=f"pool {name!r} of granularity run")
