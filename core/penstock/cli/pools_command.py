"""`penstock pools`: the limits of pools."""

from __future__ import annotations

import json
from typing import Any

import click

import penstock
from penstock import changes
from penstock.claim import check_pool_name
from penstock.cli import EXIT_NO, json_option
from penstock.cli.tables import console, limit_table
from penstock.config import Granularity, PoolLimit
from penstock.engine import Engine
from penstock.report import all_limits
from penstock.rules import LimitKind, pool_key


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
@click.argument("name")
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
@click.argument("name")
@click.argument("limit", type=click.IntRange(0, 10_000))
@click.option("--granularity", type=click.Choice([each.value for each in Granularity]))
@click.option("--description", metavar="T")
@click.pass_obj
def set_limit(store_url: str | None, name: str, limit: int, granularity: str | None, description: str | None) -> None:
    """Set the limit of a pool; holders keep what they hold."""
    check_pool_name(name)
    with penstock.connect(store_url) as engine:
        own = engine.configuration(fresh=True)[1].pools.limits.get(name, PoolLimit(limit=limit))
        update: dict[str, Any] = {"limit": limit}
        if granularity is not None:
            update["granularity"] = Granularity(granularity)
        if description is not None:
            update["description"] = description
        changes.set_pool(engine, name, own.model_copy(update=update))
    click.echo(f"{pool_key(name)}: {limit}")


@command.command("delete")
@click.argument("name")
@click.pass_obj
def delete(store_url: str | None, name: str) -> int:
    """Delete the explicit limit of a pool: it falls to the default."""
    with penstock.connect(store_url) as engine:
        if name not in engine.configuration(fresh=True)[1].pools.limits:
            click.echo(f"penstock: pool {name!r} has no limit of its own", err=True)
            return EXIT_NO
        changes.set_pool(engine, name, None)
        default = engine.configuration()[1].pools.default_limit
    click.echo(f"{pool_key(name)}: deleted; it now has {'no limit' if default is None else f'the default, {default}'}")
    return 0
