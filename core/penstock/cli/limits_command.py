"""`penstock limits`: every limit."""

from __future__ import annotations

import json

import click

import penstock
from penstock.cli import json_option
from penstock.cli.tables import console, limit_table
from penstock.report import all_limits


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
