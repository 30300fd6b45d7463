"""The hooks of Penstock: project and entry-point group `penstock`. Hosts use the same ones as strangers' plugins.

A hook is a plain function, called in the thread that its docstring names. Nobody cuts it short: what it waits for, the
claim (or the heartbeat) waits for too. What becomes of an error is told hook by hook and done in hooks.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import pluggy

if TYPE_CHECKING:
    import click

    from penstock.claim import Claim
    from penstock.config import Concurrency
    from penstock.decision import Reason, Waiting
    from penstock.engine import Engine
    from penstock.errors import Fault
    from penstock.lease import Lease
    from penstock.rules import Demand
    from penstock.store.contract import ClaimRow

hookspec = pluggy.HookspecMarker("penstock")
hookimpl = pluggy.HookimplMarker("penstock")

Why = Literal["impossible", "blocked", "skipped", "timed_out", "withdrawn"]
"""Why a claim got no lease: it could never fit; there was no room (`on_blocked="fail"`, `try_acquire`), or none and it
asked to be skipped then; its wait ran out; the wait was cancelled."""

OBSERVERS: Final = frozenset(
    {
        "penstock_engine_started",
        "penstock_engine_closed",
        "penstock_granted",
        "penstock_waiting",
        "penstock_refused",
        "penstock_released",
        "penstock_expired",
        "penstock_lost",
        "penstock_limit_changed",
        "penstock_add_command",
    }
)
"""All are called; one that raises is logged with its plugin's name, and nothing else comes of it."""

CHANGES: Final[Mapping[str, str]] = {"penstock_enrich_claim": "claim", "penstock_adjust_demands": "demands"}
"""Hook → the argument that it changes: each plugin is given what the one before it returned. One that raises is a
PluginError of the claim: a limit that a plugin was to add is never left out in silence."""

QUESTIONS: Final = frozenset({"penstock_holder_alive", "penstock_holder_url"})
"""The first answer counts; a plugin that raises is logged and has not answered."""

TASKS: Final = frozenset({"penstock_import_configuration"})
"""The first result counts; an error is the caller's."""


class Report(Protocol):
    """What an importer has to show beside a configuration."""

    def tables(self) -> Sequence[tuple[str, Sequence[str], Sequence[Sequence[object]]]]:
        """For people: of each table its title, columns and rows; None is a dash."""

    def as_json(self) -> Mapping[str, object]:
        """For scripts."""


@dataclass(frozen=True, slots=True)
class ImportedConfiguration:
    """What an importer made of a foreign configuration.

    `concurrency` is the inside of a `concurrency:` block, spelled as in penstock.yaml; it is checked like a file.
    `notes` are whole sentences on what has no counterpart, was left out, or means something else here. `origins` says
    for places in it (`runs.max_concurrent_runs`, `runs.tag_concurrency_limits[0]`) where the value comes from.
    `left_out` are limits that do not come along, each with its line, why, and what to do instead. `report` stands
    beside the configuration and is shown after it.
    """

    concurrency: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[Fault, ...] = ()
    report: Report | None = None


# -- an engine's life -----------------------------------------------------------------------------------------------


@hookspec
def penstock_engine_started(engine: Engine) -> None:
    """An engine of this process is ready, before its first claim.

    Called from the thread that made the engine. Hold the engine weakly: it must be free to go. An error is logged.
    """


@hookspec
def penstock_engine_closed(engine: Engine) -> None:
    """An engine of this process was closed; ask its store nothing any more.

    Called from the thread that closed it. An error is logged.
    """


# -- a claim's way --------------------------------------------------------------------------------------------------


@hookspec
def penstock_enrich_claim(claim: Claim) -> Claim | None:
    """Add to a claim before it is resolved: tags, pools, priority, URL.

    Called once for each request, from the thread that asks. Return a new claim (`dataclasses.replace`), or None to
    leave it; the next plugin is given what this one returned. Who holds (kind, host, deployment, run, op, attempt,
    claim id) must stay. An error fails the claim with PluginError.
    """


@hookspec
def penstock_adjust_demands(
    claim: Claim, demands: Sequence[Demand], concurrency: Concurrency
) -> Sequence[Demand] | None:
    """Add to, change or shorten what a claim must pass.

    Called at each step of a claim, many times while it waits, from the thread that steps it (any, under asyncio): the
    same claim and configuration must always give the same demands. Return all demands, each limit once, or None to
    leave them; the next plugin is given what this one returned. An error fails the claim with PluginError.
    """


@hookspec
def penstock_waiting(claim: Claim, waiting: Waiting) -> None:
    """A claim of this process has to wait.

    Called once for each wait, after its first step, from the thread or event loop that waits. An error is logged.
    """


@hookspec
def penstock_granted(lease: Lease, waited_seconds: float) -> None:
    """A claim was granted; `waited_seconds` counts from when it was queued, by another process perhaps.

    Called once for each grant, in the process that steps the claim first after it, before the holder has the lease,
    from the thread that steps: not again where others join a run's lease, or take over what a ticket holds. An error is
    logged.
    """


@hookspec
def penstock_refused(claim: Claim, reasons: Sequence[Reason], why: Why, waited_seconds: float) -> None:
    """A claim of this process ended without a lease and left nothing behind.

    Called from the thread that asked, before it hears of it. An error is logged.
    """


@hookspec
def penstock_released(lease: Lease, held_seconds: float) -> None:
    """A lease of this process was given back.

    Called once for each lease, when its slots are free, from the thread that released it. An error is logged.
    """


@hookspec
def penstock_lost(lease: Lease) -> None:
    """A lease of this process can no longer be trusted: others may get its slots while its holder works on.

    Called once for each lease, mostly from the heartbeat's thread. No `penstock_released` follows. An error is logged.
    """


@hookspec
def penstock_expired(claim: Claim, held_seconds: float | None, reason: str) -> None:
    """This process's sweep ended a claim that nobody stands behind any more, whichever process it was of.

    `held_seconds` is None for a waiter. `reason` says it in words: its session or ticket ran out, or its host said that
    the run is over. Of all processes on the store one tells it, or none if that one dies just then. Called from the
    thread that sweeps, often the heartbeat's. An error is logged.
    """


@hookspec
def penstock_limit_changed(key: str, capacity: int | None) -> None:
    """This process changed a limit; `capacity` None is unlimited.

    Called once for each limit, after the change is in force, from the thread that made it. An error is logged.
    """


# -- questions ------------------------------------------------------------------------------------------------------


@hookspec(firstresult=True)
def penstock_holder_alive(claim: ClaimRow) -> bool | None:
    """Whether the run behind a lease still lives.

    Called now and then for each run lease that no process stands behind, from the thread that sweeps: return within a
    second. False ends the lease at once; None says that this plugin cannot tell. An error is logged and tells nothing.
    """


@hookspec(firstresult=True)
def penstock_holder_url(claim: Claim) -> str | None:
    """Where a person can look at the holder of a claim.

    Called once for each claim that has no URL after `penstock_enrich_claim`, from the thread that asks; the store keeps
    the answer, so that those who look need not have this plugin. None says that it does not know. An error is logged.
    """


@hookspec(firstresult=True)
def penstock_import_configuration(kind: str, source: str, options: Mapping[str, str]) -> ImportedConfiguration | None:
    """Read the configuration of another tool.

    Called by `penstock migrate` and `penstock import`, from their main thread. `kind` names the tool's form (`dagster`,
    `airflow-pools`, `prefect-limits`, or a plugin's own); `source` is what the user gave: a file, a folder, a URL;
    `options` are the options of the command that say more of it, those that were given (`instance_url`, `tags`).
    None for a kind that this plugin does not read. Raise ConfigError with every fault found; any other error becomes a
    PluginError.
    """


# -- the command line -----------------------------------------------------------------------------------------------


@hookspec
def penstock_add_command(group: click.Group) -> None:
    """Add a command to `penstock`, by `group.add_command`; `context.obj` in it is the store's URL as given, or None.

    Called from the main thread when `penstock --help` lists the commands or a command is none of Penstock's own, whose
    names come first. An error is logged; the other commands stay.
    """
