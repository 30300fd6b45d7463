"""Work that is tagged with a room takes a seat there; `penstock rooms` lists the rooms that are in use."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
import penstock
from penstock.claim import Claim, check_pool_name
from penstock.config import Concurrency
from penstock.hookspecs import hookimpl
from penstock.lease import Lease
from penstock.rules import Demand, pool_key, resolve_limit


@hookimpl
def penstock_enrich_claim(claim: Claim) -> Claim | None:
    """Who says nothing of a room works in the hall."""
    return None if "room" in claim.tags else replace(claim, tags={**claim.tags, "room": "hall"})


@hookimpl
def penstock_adjust_demands(
    claim: Claim, demands: Sequence[Demand], concurrency: Concurrency
) -> Sequence[Demand] | None:
    """A seat in the room, on top of what it asks for."""
    key = pool_key(check_pool_name(f"room/{claim.tags['room']}"))
    return [*demands, Demand(key, 1, *resolve_limit(key, concurrency))]


@hookimpl
def penstock_granted(lease: Lease, waited_seconds: float) -> None:
    """Write it into the book at the door."""
    with Path(os.environ["ROOMS_BOOK"]).open("a") as book:
        book.write(f"{lease.claim.tags['room']} {os.getpid()} {waited_seconds:.0f}\n")


@hookimpl
def penstock_holder_url(claim: Claim) -> str | None:
    """Where to look for who is there."""
    return f"https://rooms.example/{claim.tags['room']}"


@hookimpl
def penstock_add_command(group: click.Group) -> None:
    """Add `penstock rooms`."""

    @click.command("rooms")
    @click.pass_obj
    def rooms(store_url: str | None) -> None:
        """The rooms and their seats."""
        with penstock.connect(store_url) as engine:
            for row in engine.store.limit_rows():
                if row.key.startswith("pool:room/"):
                    click.echo(f"{row.key.removeprefix('pool:room/')}: {row.held} of {row.capacity}")

    group.add_command(rooms)
