"""What the shell offers for an argument: names and ids from the store, or silently nothing when it does not answer."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from penstock.text import shown

if TYPE_CHECKING:
    from penstock.store.sql import SqlStore

PATIENCE_SECONDS = 2.0
Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _offering(candidates: Callable[[SqlStore], Iterable[tuple[str, str | None]]]) -> Complete:
    """Completes with those of the (value, help) pairs that begin with what was typed."""

    def complete(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        # The group's own function does not run for a completion, so `context.obj` is not set.
        given = context.find_root().params.get("store_url")
        found: list[tuple[str, str | None]] = []
        from penstock.connection import existing_store  # what is loaded, however slowly, is not the store's delay
        from penstock.settings import store_url

        def look() -> None:
            with contextlib.suppress(Exception), contextlib.closing(existing_store(store_url(given))) as store:
                found.extend(set(candidates(store)))

        looking = threading.Thread(target=look, daemon=True)  # a server that is away is not waited for
        looking.start()
        looking.join(PATIENCE_SECONDS)
        # A name that would act on the terminal is left out: escaped it would name something else.
        return [
            CompletionItem(value, help=None if note is None else shown(note))
            for value, note in sorted(found)
            if value.startswith(incomplete) and shown(value) == value
        ]

    return complete


def _pools(store: SqlStore) -> Iterable[tuple[str, str | None]]:
    return {key.removeprefix("pool:"): note for key, note in _limits(store) if key.startswith("pool:")}.items()


def _limits(store: SqlStore) -> Iterable[tuple[str, str | None]]:
    from penstock.config import Concurrency
    from penstock.report import all_limits

    concurrency = Concurrency.from_document(store.configuration().document)
    for limit in all_limits(store.limit_rows(), concurrency):
        capacity = "unlimited" if limit["capacity"] is None else limit["capacity"]
        yield limit["key"], f"{limit['held']} of {capacity} held, {limit['waiting']} wait"


def _settable(store: SqlStore) -> Iterable[tuple[str, str | None]]:
    from penstock import edits

    yield edits.DEFAULT_LIMIT, "the limit of pools that have none of their own"
    yield edits.RUNS, "the run total"
    for key, note in _limits(store):
        if key.startswith(("pool:", "run_tag:")) and "=*:" not in key:
            yield key, note


def _identifiers(store: SqlStore) -> Iterable[tuple[str, str | None]]:
    for row in store.snapshot().claims:
        claim = row.claim
        yield claim.claim_id, f"{claim.label} ({row.state.value})"
        if claim.run_id is not None:
            yield claim.run_id, f"a run of {claim.host}/{claim.deployment}"
        if claim.op_id is not None:
            yield claim.op_id, "an op"


def _runs(store: SqlStore) -> Iterable[tuple[str, str | None]]:
    for row in store.snapshot().claims:
        if row.claim.run_id is not None:
            yield row.claim.run_id, f"{row.claim.host}/{row.claim.deployment}"


def _installations(store: SqlStore) -> Iterable[tuple[str, str | None]]:
    for deployment in store.deployments():
        yield f"{deployment.host}/{deployment.name}", deployment.fingerprint


pool_names = _offering(_pools)
settable_keys = _offering(_settable)
identifiers = _offering(_identifiers)
run_ids = _offering(_runs)
installations = _offering(_installations)
