"""`penstock db`: the store's tables."""

from __future__ import annotations

import click

from penstock.settings import store_url as url_of
from penstock.store.sql import SqlStore
from penstock.store.tables import REVISION


@click.group("db")
def command() -> None:
    """The tables of the store."""


@command.command("upgrade")
@click.pass_obj
def upgrade(store_url: str | None) -> None:
    """Create the tables, or bring them to this version."""
    store = SqlStore(url_of(store_url))
    store.upgrade()
    click.echo(f"{store.url}: schema {store.schema_revision()}")
    store.close()


@command.command("current")
@click.pass_obj
def current(store_url: str | None) -> None:
    """Show the store's schema and the one that this version wants."""
    store = SqlStore(url_of(store_url))
    click.echo(f"{store.url}: schema {store.schema_revision() or 'none'}, this version works with {REVISION}")
    store.close()
