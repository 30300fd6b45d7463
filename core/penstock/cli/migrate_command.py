"""`penstock migrate`: the limits of an orchestrator that is left, as a penstock.yaml."""

from __future__ import annotations

import json

import click

from penstock.cli import json_option
from penstock.cli.foreign import as_dict, checked, exit_code, imported, show, strict_option
from penstock.cli.output import refused, write_whole
from penstock.cli.plan_command import plain_faults, show_warnings
from penstock.cli.tables import show_tables
from penstock.config_file import read
from penstock.config_writer import written


@click.group("migrate")
def command() -> None:
    """Write the limits of an orchestrator that is left as a penstock.yaml."""


@command.command("dagster")
@click.argument("source", type=click.Path())
@click.option("-o", "--output", type=click.Path(dir_okay=False), metavar="FILE", help="Else stdout.")
@click.option("--instance-url", metavar="URL", help="Dagster's database, or its SQLite file: the limits of pools.")
@click.option("--tags", type=click.Path(dir_okay=False), metavar="FILE", help="Which tags stand for Dagster's.")
@click.option("--code", type=click.Path(), metavar="PATH", help="Also report on the Python definitions there.")
@strict_option
@click.option("--yes", is_flag=True, help="Do not ask before a file is replaced.")
@json_option
def dagster(
    source: str,
    output: str | None,
    instance_url: str | None,
    tags: str | None,
    code: str | None,
    strict: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Write what limits in SOURCE: a dagster.yaml, Helm values, Dagster+ settings, or a DAGSTER_HOME. Touches no store.

    What has no counterpart is named, with why and what to do instead.
    """
    if as_json and output is None:
        raise click.UsageError("--json prints the report, so the configuration needs a FILE: -o")
    given = {"instance_url": instance_url, "tags": tags, "code": code}
    found = imported("dagster", source, {name: value for name, value in given.items() if value is not None})
    concurrency = checked(source, found)
    head = [f"From {source} by `penstock migrate dagster`."]
    head += [f"No counterpart: {fault}" for fault in found.left_out]
    text = written(concurrency, found.origins, head)
    new = read(text)
    if output is None:
        click.echo(text, nl=False)
    else:
        if (code_ := refused(output, yes=yes)) is not None:
            return code_
        write_whole(output, text)
    if as_json:
        click.echo(json.dumps({**as_dict(found), "warnings": plain_faults(new.warnings)}))
    else:
        show(source, found.left_out, found.notes)
        show_warnings(output or "the configuration", new.warnings)
        if found.report is not None:
            show_tables(found.report.tables(), on_stderr=output is None)
    return exit_code(found, strict=strict)
