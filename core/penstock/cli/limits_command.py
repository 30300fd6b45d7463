"""`penstock limits`: every limit."""

from __future__ import annotations

import json

import click

import penstock
from penstock import changes, edits
from penstock.claim import CAPACITY_MAX
from penstock.cli import EXIT_NO, json_option
from penstock.cli.completing import settable_keys
from penstock.cli.tables import console, limit_table
from penstock.report import all_limits
from penstock.rules import resolve_limit
from penstock.text import shown


@click.group("limits")
def command() -> None:
    """Every limit: pools, the run total, tag rules, and those in use by value."""


@command.command("list")
@json_option
@click.pass_obj
def list_limits(store_url: str | None, as_json: bool) -> None:
    """List them, with what is held and how many wait."""
    with penstock.connect(store_url) as engine:
        limits = all_limits(engine.store.limit_rows(), engine.configuration(fresh=True)[1])
    if as_json:
        click.echo(json.dumps(limits))
    else:
        console().print(limit_table(limits))


@command.command("set")
@click.argument("key", shell_complete=settable_keys)
@click.argument("limit", type=click.IntRange(0, CAPACITY_MAX))
@click.pass_obj
def set_limit(store_url: str | None, key: str, limit: int) -> None:
    """Set the limit KEY: pool:NAME, runs, run_tag:KEY, run_tag:KEY=VALUE, run_tag:KEY=*, pools.default_limit.

    Holders keep what they hold; what they hold over the new limit drains.
    """
    target = edits.target_of(key)
    with penstock.connect(store_url) as engine:
        changes.edit(engine, lambda concurrency: edits.with_limit(concurrency, target, limit))
    click.echo(f"{shown(target.key)}: {limit}")


@command.command("delete")
@click.argument("key", shell_complete=settable_keys)
@click.pass_obj
def delete(store_url: str | None, key: str) -> int:
    """Delete the limit KEY: a pool falls to the default, everything else becomes unlimited."""
    return delete_limit(store_url, edits.target_of(key))


def delete_limit(store_url: str | None, target: edits.Target) -> int:
    """Delete a limit and say what counts there now; the exit code."""
    with penstock.connect(store_url) as engine:
        if not edits.is_set(engine.configuration(fresh=True)[1], target):
            click.echo(f"penstock: {shown(target.key)} is not set; `penstock limits list` shows what is", err=True)
            return EXIT_NO
        changes.edit(engine, lambda concurrency: edits.with_limit(concurrency, target, None))
        default = None if target.pool is None else resolve_limit(target.key, engine.configuration()[1])[0]
    click.echo(f"{shown(target.key)}: deleted; {'unlimited now' if default is None else f'now the default, {default}'}")
    return 0
