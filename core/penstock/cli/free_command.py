"""`penstock free`: end leases and withdraw waiters."""

from __future__ import annotations

import json

import click

import penstock
from penstock.cli import EXIT_NO, json_option
from penstock.cli.asking import declined
from penstock.cli.completing import identifiers, run_ids
from penstock.freeing import chosen, foretold, free, starting_then
from penstock.text import shown


@click.command("free")
@click.argument("identifier", metavar="[ID]", required=False, shell_complete=identifiers)
@click.option(
    "--run", metavar="[HOST/DEPLOYMENT/]RUN_ID", help="All of this run; with ID, that op of it.", shell_complete=run_ids
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_obj
def command(store_url: str | None, identifier: str | None, run: str | None, yes: bool, as_json: bool) -> int:
    """End the leases of ID and withdraw its waiters, after asking. ID is a claim, else a run, else an op of one run.

    The epochs of the slots die with the leases. The processes are not stopped: those that hold go on without their
    slots, so end them first.
    """
    if identifier is None and run is None:
        raise click.UsageError("name what is to be freed: a claim, a run or an op, or --run RUN_ID")
    with penstock.connect(store_url) as engine:
        snapshot = engine.snapshot()
        rows = chosen(snapshot, identifier, run)
        if not rows:
            wanted = " of run ".join(f"'{shown(name)}'" for name in (identifier, run) if name is not None)
            click.echo(f"penstock: {wanted} holds nothing and waits for nothing; `penstock status` shows all", err=True)
            return EXIT_NO
        starting = starting_then(snapshot, rows)
        if not as_json:
            for line in foretold(rows, starting, snapshot.now):
                click.echo(shown(line))
        if (code := declined("Free?", yes=yes)) is not None:
            return code
        freed = free(engine, rows)
    if as_json:
        ids = {"freed": freed, "may_start": starting}
        click.echo(json.dumps({name: [row.claim.claim_id for row in rows] for name, rows in ids.items()}))
    else:
        ended = len(rows) - len(freed)
        click.echo(f"freed {len(freed)}" + (f", {ended} had ended meanwhile" if ended else ""))
    return 0
