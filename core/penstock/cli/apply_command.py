"""`penstock apply`: put a configuration file in force."""

from __future__ import annotations

import click

import penstock
from penstock import changes
from penstock.cli.asking import declined
from penstock.cli.plan_command import prune_option, read_configuration, show_plan, show_warnings


@click.command("apply")
@click.argument("file", type=click.Path(dir_okay=False))
@prune_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def command(store_url: str | None, file: str, prune: bool, yes: bool) -> int:
    """Make FILE the configuration: everything that a file can say, except pool limits that it does not name."""
    new = read_configuration(file)
    show_warnings(file, new.warnings)
    with penstock.connect(store_url) as engine:
        plan = changes.plan(engine, new.concurrency, prune=prune)
        show_plan(plan)
        if not plan.changes:
            return 0
        if (code := declined("Apply?", yes=yes)) is not None:
            return code
        version = changes.apply(engine, plan.after, expected_version=plan.version)
        click.echo(f"applied as version {version}")
    return 0
