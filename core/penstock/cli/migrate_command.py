"""`penstock migrate`: the limits of an orchestrator that is left, as a penstock.yaml."""

from __future__ import annotations

import json
from collections.abc import Mapping

import click

from penstock.cli import EXIT_NO, json_option
from penstock.cli.import_command import checked, imported
from penstock.cli.output import refused, write_whole
from penstock.cli.plan_command import plain_faults, show_warnings
from penstock.cli.tables import show_tables
from penstock.cli.text import shown
from penstock.config_file import Read, read
from penstock.config_writer import written
from penstock.hookspecs import ImportedConfiguration


@click.group("migrate")
def command() -> None:
    """Write the limits of an orchestrator that is left as a penstock.yaml."""


@command.command("dagster")
@click.argument("source", type=click.Path())
@click.option("-o", "--output", type=click.Path(dir_okay=False), metavar="FILE", help="Else stdout.")
@click.option("--instance-url", metavar="URL", help="Dagster's database, or its SQLite file: the limits of pools.")
@click.option("--tags", type=click.Path(dir_okay=False), metavar="FILE", help="Which tags stand for Dagster's.")
@click.option("--code", type=click.Path(), metavar="PATH", help="Also report on the Python definitions there.")
@click.option("--strict", is_flag=True, help="Exit 1 when a limit has no counterpart; FILE is written all the same.")
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
        click.echo(json.dumps(_as_dict(found, new)))
    else:
        _show(source, output or "the configuration", found, new)
        if found.report is not None:
            show_tables(found.report.tables(), on_stderr=output is None)
    return EXIT_NO if strict and found.left_out else 0


def _as_dict(found: ImportedConfiguration, new: Read) -> Mapping[str, object]:
    return {
        "left_out": plain_faults(found.left_out),
        "notes": list(found.notes),
        "origins": dict(found.origins),
        "warnings": plain_faults(new.warnings),
        "report": found.report and found.report.as_json(),
    }


def _show(source: str, output: str, found: ImportedConfiguration, new: Read) -> None:
    for fault in found.left_out:
        click.echo(f"{shown(source)}: no counterpart: {shown(str(fault))}", err=True)
    for note in found.notes:
        click.echo(f"{shown(source)}: {shown(note)}", err=True)
    show_warnings(output, new.warnings)
