"""`penstock plan`: what a configuration file would change, and whom."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

import penstock
from penstock import changes
from penstock.cli import EXIT_CHANGES, json_option
from penstock.config_file import Read, read_file
from penstock.errors import ConfigError, Fault
from penstock.plan import Plan
from penstock.text import shown

prune_option = click.option("--prune", is_flag=True, help="Delete explicit pool limits that FILE does not name.")


@click.command("plan")
@click.argument("file", type=click.Path(dir_okay=False))
@prune_option
@click.option("--exit-code", is_flag=True, help="Exit 3 when there are changes, 0 when there are none.")
@json_option
@click.pass_obj
def command(store_url: str | None, file: str, prune: bool, exit_code: bool, as_json: bool) -> int:
    """Show what `apply` would change and whom it would touch. Changes nothing."""
    new = read_configuration(file)
    with penstock.connect(store_url) as engine:
        plan = changes.plan(engine, new.concurrency, prune=prune)
    if as_json:
        click.echo(json.dumps({**plan.as_dict(), "warnings": plain_faults(new.warnings)}))
    else:
        show_warnings(file, new.warnings)
        show_plan(plan)
    return EXIT_CHANGES if exit_code and plan.changes else 0


def read_configuration(file: str) -> Read:
    """The file's configuration. Raises ConfigError with the file's name before each fault."""
    try:
        return read_file(file)
    except ConfigError as error:
        raise ConfigError([Fault(f"{file}: {fault}") for fault in error.faults]) from None


def plain_faults(faults: Sequence[Fault]) -> list[dict[str, str | int | None]]:
    """As plain JSON values."""
    return [{"line": fault.line, "path": fault.path, "message": fault.message} for fault in faults]


def show_warnings(file: str, warnings: Sequence[Fault]) -> None:
    """What the author of the file should know all the same, on stderr."""
    for warning in warnings:
        click.echo(f"{shown(file)}: warning: {shown(str(warning))}", err=True)


def show_plan(plan: Plan) -> None:
    """What it would change, and whom."""
    for line in plan.lines():
        click.echo(shown(line))
