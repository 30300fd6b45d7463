"""`penstock explain`: why something waits, on one screen."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import click

import penstock
from penstock.cli import EXIT_NO, json_option
from penstock.cli.completing import identifiers
from penstock.report import lasting
from penstock.text import shown

MOST_MATCHES, MOST_HOLDERS, MOST_AHEAD = 5, 3, 3  # what keeps it on one screen; `--json` says it all


@click.command("explain")
@click.argument("identifier", metavar="ID", shell_complete=identifiers)
@json_option
@click.pass_obj
def command(store_url: str | None, identifier: str, as_json: bool) -> int:
    """Say why ID waits, for whom and behind whom, or what it holds. ID is a claim, else a run, else an op."""
    with penstock.connect(store_url) as engine:
        told = engine.explain(identifier, most=None if as_json else MOST_MATCHES)
    matches = told["matches"]
    if as_json:
        click.echo(json.dumps(told))
    elif not matches:
        click.echo(
            f"penstock: no claim, run or op '{shown(identifier)}' holds or waits now; `penstock status` shows all",
            err=True,
        )
    else:
        for number, match in enumerate(matches):
            click.echo(("\n" if number else "") + "\n".join(map(shown, _lines(match))))
        if told["count"] > len(matches):
            more, waiting = told["count"] - len(matches), told["waiting"] - sum("ahead" in match for match in matches)
            click.echo(f"\nand {more} more of this {told['kind']}, {waiting} of them waiting (--json shows all)")
    return 0 if matches else EXIT_NO


def _lines(match: dict[str, Any]) -> Iterator[str]:
    yield f"{match['label']}  (claim {match['claim_id']})"
    if match["url"]:
        yield f"  {match['url']}"
    yield from _waiting(match) if "ahead" in match else _holding(match)
    for note in match["notes"]:
        yield f"  note: {note}"


def _waiting(match: dict[str, Any]) -> Iterator[str]:
    yield (
        f"  {_STATES[match['state']]} since {match['enqueued_at']} ({lasting(match['waited_seconds'])}), "
        f"place {match['position']} in the queue, {match['order']}"
    )
    for barred in match["blocked_by"]:
        yield f"  {_barring(barred)}"
        for holder in barred["held_by"][:MOST_HOLDERS]:
            yield f"    {_holder(holder)}"
            if holder["url"]:
                yield f"      {holder['url']}"
        if (more := len(barred["held_by"]) + barred["holders_left_out"] - MOST_HOLDERS) > 0:
            yield f"    and {more} more"
    for reserved in match["reserved_by"]:
        yield f"  {reserved['limit']}: what is free is reserved until {reserved['until']} for {_who(reserved['by'])}"
    for reserves in match["reserves"]:
        yield f"  it waits so long that it reserves what is free of {reserves['limit']} until {reserves['until']}"
    ahead = match["ahead_of_it"]
    for other in ahead[:MOST_AHEAD]:
        yield f"  ahead of it: {_who(other)}, waiting since {other['since']}"
    if (more := match["position"] - 1 - MOST_AHEAD) > 0:
        yield f"  and {more} more ahead of it"
    if match["circle"]:
        yield "  CIRCLE: these wait for each other, and nobody goes on by himself:"
        for link in match["circle"]:
            yield f"    {_who(link['waiter'])} waits for {link['limit']}, which {_who(link['holder'])} holds"
        yield "    end one of them (`penstock free`), and take those limits in one claim, or always in the same order"
    elif not (match["blocked_by"] or match["reserved_by"] or match["notes"]):
        yield "  nothing bars it now: it is granted at the next look"


def _barring(barred: dict[str, Any]) -> str:
    ahead = f", {barred['waiting_ahead']} ahead in the queue" if barred["waiting_ahead"] else ""
    if barred["capacity"] == 0:
        return f"for {barred['limit']}: closed (limit 0), {barred['held']} held{ahead}"
    needs = "" if barred["needed"] == 1 else f", it needs {barred['needed']}"
    never = " and can never have them unless the limit is raised" if barred["needed"] > barred["capacity"] else ""
    return f"for {barred['limit']}: {barred['held']} of {barred['capacity']} held{needs}{never}{ahead}"


def _holder(holder: dict[str, Any]) -> str:
    slots = "" if holder["slots"] == 1 else f"{holder['slots']} slots, "
    return (
        f"held by {_who(holder)}: {slots}since {holder['since']} ({lasting(holder['held_seconds'] or 0)})"
        f"{_processes(holder['sessions'])}"
    )


def _holding(match: dict[str, Any]) -> Iterator[str]:
    if match["state"] == "skipped":
        return
    slots = Counter(slot["limit"] for slot in match["slots"])
    what = ", ".join(key if count == 1 else f"{count} of {key}" for key, count in sorted(slots.items()))
    yield f"  holds {what or 'no limit'} since {match['granted_at']} ({lasting(match['held_seconds'] or 0)})"
    if match["sessions"]:
        yield f"  for as long as its process beats, now until {match['expires_at']}{_processes(match['sessions'])}"
    elif match["expires_at"]:
        yield f"  until {match['expires_at']}, unless somebody speaks up for it"


def _processes(sessions: list[dict[str, Any]]) -> str:
    return "".join(f", pid {session['pid']} on {session['hostname']}" for session in sessions[:2])


def _who(claim: dict[str, Any]) -> str:
    """Its label, and its id where the label alone would name many (`host/deployment` and nothing else)."""
    label: str = claim["label"]
    return label if " " in label else f"{label} {claim['claim_id']}"


_STATES = {
    "waiting": "waits",
    "impossible": "waits for more than there ever will be",
    "parked": "is parked",
}
