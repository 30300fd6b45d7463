"""`penstock pools`: the limits of pools."""

from __future__ import annotations

import json
from typing import Any

import click

import penstock
from penstock import changes, edits
from penstock.claim import CAPACITY_MAX
from penstock.cli import EXIT_NO, json_option
from penstock.cli.completing import pool_names
from penstock.cli.limits_command import delete_limit
from penstock.cli.tables import console, limit_table, table
from penstock.config import Concurrency, Granularity, PoolLimit
from penstock.engine import Engine
from penstock.report import all_limits, op_pools
from penstock.rules import LimitKind, pool_key
from penstock.text import shown

DAY = 86_400_000_000
"""In µs."""


@click.group("pools")
def command() -> None:
    """The pools and their limits."""


def _pools(engine: Engine) -> list[dict[str, Any]]:
    limits = all_limits(engine.store.limit_rows(), engine.configuration(fresh=True)[1])
    return [
        {"name": limit["key"].removeprefix("pool:"), **limit} for limit in limits if limit["kind"] == LimitKind.POOL
    ]


@command.command("list")
@json_option
@click.pass_obj
def list_pools(store_url: str | None, as_json: bool) -> None:
    """List the pools that have a limit or are in use."""
    with penstock.connect(store_url) as engine:
        pools = _pools(engine)
    if as_json:
        click.echo(json.dumps(pools))
    else:
        console().print(limit_table(pools))


@command.command("get")
@click.argument("name", shell_complete=pool_names)
@json_option
@click.pass_obj
def get(store_url: str | None, name: str, as_json: bool) -> int:
    """Show one pool."""
    with penstock.connect(store_url) as engine:
        pools = [pool for pool in _pools(engine) if pool["name"] == name]
    if not pools:
        click.echo(f"penstock: no pool {name!r}; `penstock pools list` shows those there are", err=True)
        return EXIT_NO
    if as_json:
        click.echo(json.dumps(pools[0]))
    else:
        console().print(limit_table(pools))
    return 0


@command.command("set")
@click.argument("name", shell_complete=pool_names)
@click.argument("limit", type=click.IntRange(0, CAPACITY_MAX))
@click.option("--granularity", type=click.Choice([each.value for each in Granularity]))
@click.option("--description", metavar="T")
@click.pass_obj
def set_limit(store_url: str | None, name: str, limit: int, granularity: str | None, description: str | None) -> None:
    """Set the limit of a pool; holders keep what they hold."""
    target = edits.target_of(pool_key(name))
    update: dict[str, Any] = {"limit": limit}
    if granularity is not None:
        update["granularity"] = Granularity(granularity)
    if description is not None:
        update["description"] = description

    def change(concurrency: Concurrency) -> Concurrency:
        own = concurrency.pools.limits.get(name, PoolLimit(limit=limit))
        return concurrency.with_pool(name, own.model_copy(update=update))

    with penstock.connect(store_url) as engine:
        changes.edit(engine, change)
    click.echo(f"{shown(target.key)}: {limit}")


@command.command("delete")
@click.argument("name", shell_complete=pool_names)
@click.pass_obj
def delete(store_url: str | None, name: str) -> int:
    """Delete the explicit limit of a pool: it falls to the default."""
    return delete_limit(store_url, edits.target_of(pool_key(name)))


@command.command("ops")
@click.option("--days", type=click.FloatRange(0, 3650), default=1.0, show_default=True, help="How far to look back.")
@json_option
@click.pass_obj
def ops(store_url: str | None, days: float, as_json: bool) -> None:
    """List which op takes which pools, of those that were granted lately, or hold or wait now.

    An op that is not listed has no pool: nothing limits it but its run.
    """
    with penstock.connect(store_url) as engine:
        snapshot = engine.snapshot()
        found = op_pools(snapshot, engine.store.history(since=snapshot.now - int(days * DAY)))
    if as_json:
        click.echo(json.dumps(found))
        return
    rows = [
        (f"{row['host']}/{row['deployment']}", row["op"], ", ".join(f"{name}:{n}" for name, n in row["pools"].items()))
        for row in found
    ]
    console().print(table("", ("installation", "op", "pools"), rows))
