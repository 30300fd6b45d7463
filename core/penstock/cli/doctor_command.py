"""`penstock doctor`: each part, and whether it is really active."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import click

from penstock.cli import EXIT_NO, EXIT_STORE, json_option
from penstock.diagnosis import Part, State
from penstock.errors import StoreUnavailable
from penstock.text import shown

COLOURS = {State.OK: "green", State.INACTIVE: "cyan", State.WARNING: "yellow", State.FAULT: "red"}


@click.command("doctor")
@json_option
@click.option("--store-from", hidden=True, help="Of a host's command line: where it has the store from.")
@click.pass_obj
def command(store_url: str | None, as_json: bool, store_from: str | None) -> int:
    """Name each part, whether it is really active, and what to do where it is not sound. Changes nothing."""
    parts = []
    for part in _parts(store_url, store_from):
        parts.append(part)
        if not as_json:
            _show(part)
    faults = [part for part in parts if part.state is State.FAULT]
    if as_json:
        click.echo(json.dumps({"ok": not faults, "parts": [part.as_dict() for part in parts]}))
    return EXIT_STORE if any(part.name == "store" for part in faults) else EXIT_NO if faults else 0


def _parts(given: str | None, told: str | None) -> Iterator[Part]:
    from penstock.diagnosis import hosts
    from penstock.diagnosis.installation import installation_parts

    yield from _store(given, told)
    yield from installation_parts()
    yield from hosts.airflow()
    yield from hosts.prefect()


def _store(given: str | None, told: str | None) -> Iterator[Part]:
    from penstock.connection import existing_store
    from penstock.diagnosis.installation import url_source
    from penstock.diagnosis.stores import store_parts
    from penstock.settings import store_url

    if given == "":
        yield Part("store", State.INACTIVE, f"{told} names none: nothing is limited", "set store_url or conn_id there")
        return
    source = told or url_source(given)
    try:
        with contextlib.closing(existing_store(store_url(given))) as store:
            yield from store_parts(store, source)
    except StoreUnavailable as error:
        remedy = "see that the database runs and that the URL names it"
        yield Part("store", State.FAULT, f"(from {source}) {' '.join(str(error).split())}", remedy)


def _show(part: Part) -> None:
    remedy = f" -> {part.remedy}" if part.remedy else ""
    state = click.style(f"{part.state.value:9}", fg=COLOURS[part.state])
    click.echo(f"{state} {shown(part.name)}: {shown(part.detail + remedy)}")
    for row in part.facts.get("settings", ()):
        value = ", ".join(row["value"]) or "none" if isinstance(row["value"], list) else row["value"]
        click.echo(f"            {row['name']} = {shown(str(value))} ({row['from']})")
