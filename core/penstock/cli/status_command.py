"""`penstock status`: who holds, who waits, who is alive."""

from __future__ import annotations

import json

import click

import penstock
from penstock.cli import json_option
from penstock.cli.tables import console, limit_table, table


@click.command("status")
@json_option
@click.pass_obj
def command(store_url: str | None, as_json: bool) -> None:
    """Limits, leases, waiters and sessions, as they are now."""
    with penstock.connect(store_url) as engine:
        status = engine.status()
    if as_json:
        click.echo(json.dumps(status))
        return
    out = console()
    out.print(limit_table(status["limits"]))
    leases = [
        (
            row["label"],
            ", ".join(slot["limit"] for slot in row["slots"]) + (" (observed: no room)" if row["observed"] else ""),
            row["granted_at"],
            row["expires_at"],
        )
        for row in status["leases"]
    ]
    out.print(table("\nleases", ("holder", "slots", "since", "expires"), leases))
    waiters = [
        (
            row["position"],
            row["label"],
            row["state"],
            "; ".join(f"{b['limit']} {b['held']} of {b['capacity']} held" for b in row["blocked_by"]),
            row["enqueued_at"],
        )
        for row in status["waiters"]
    ]
    out.print(table("\nwaiters", ("place", "waiter", "state", "waits for", "since"), waiters))
    sessions = [
        (f"{row['host']}/{row['deployment']}", row["hostname"], row["pid"], row["expires_at"])
        for row in status["sessions"]
    ]
    out.print(table("\nsessions", ("installation", "machine", "pid", "expires"), sessions))
