"""`penstock db`: the store's tables."""

from __future__ import annotations

import contextlib

import click

from penstock.cli import EXIT_NO
from penstock.cli.asking import declined
from penstock.cli.completing import installations
from penstock.report import listed, rfc3339
from penstock.settings import store_url as url_of
from penstock.store.sql import SqlStore
from penstock.store.tables import OLDEST, REVISION
from penstock.text import shown


@click.group("db")
def command() -> None:
    """The tables of the store."""


@command.command("upgrade")
@click.pass_obj
def upgrade(store_url: str | None) -> None:
    """Create the tables, or bring them to this version. There is no way back but a backup."""
    store = SqlStore(url_of(store_url))
    store.upgrade()
    click.echo(f"{store.url}: schema {store.schema_revision()}")
    store.close()


@command.command("current")
@click.pass_obj
def current(store_url: str | None) -> None:
    """Show the store's schema, and those that this version works with."""
    store = SqlStore(url_of(store_url))
    click.echo(
        f"{store.url}: schema {store.schema_revision() or 'none'}, this version works with {OLDEST} to {REVISION}"
    )
    store.close()


@command.command("forget")
@click.argument("installation", metavar="HOST/NAME", shell_complete=installations)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def forget(store_url: str | None, installation: str, yes: bool) -> int:
    """Forget the fingerprint of an installation that has moved or is no more: another may take its name.

    What it holds and waits for stays.
    """
    host, _, name = installation.partition("/")
    with contextlib.closing(SqlStore(url_of(store_url))) as store:
        store.check_schema()
        known = {(row.host, row.name): row for row in store.deployments()}
        if (row := known.get((host, name))) is None:
            others = shown(listed([f"{host}/{name}" for host, name in known])) or "none"
            click.echo(f"penstock: no installation '{shown(installation)}' is known; known: {others}", err=True)
            return EXIT_NO
        click.echo(f"{shown(installation)} is {shown(row.fingerprint)}, first seen {rfc3339(row.registered_at)}")
        live = sum((one.claim.host, one.claim.deployment) == (host, name) for one in store.snapshot().claims)
        if live:
            click.echo(f"{live} of its claims hold or wait now: another one by this name would be taken for it")
        if (code := declined("Forget it?", yes=yes)) is not None:
            return code
        store.forget(host, name)
    click.echo("forgotten: the next one to claim under this name is noted")
    return 0
