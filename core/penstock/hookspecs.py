"""The hooks of Penstock: project and entry-point group `penstock`. Hosts use the same ones as strangers' plugins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import click

    from penstock.claim import Claim
    from penstock.config import Concurrency
    from penstock.decision import Waiting
    from penstock.lease import Lease
    from penstock.rules import Demand
    from penstock.store.contract import ClaimRow

hookspec = pluggy.HookspecMarker("penstock")
hookimpl = pluggy.HookimplMarker("penstock")


@hookspec
def penstock_enrich_claim(claim: Claim) -> Claim | None:
    """Add to a claim before it is resolved: tags, pools, priority, URL. Return a new claim, or None to leave it."""


@hookspec
def penstock_adjust_demands(
    claim: Claim, demands: Sequence[Demand], concurrency: Concurrency
) -> Sequence[Demand] | None:
    """Add or change what a claim must pass. Return all demands, or None to leave them."""


@hookspec
def penstock_granted(lease: Lease, waited_seconds: float) -> None:
    """A claim was granted in this process."""


@hookspec
def penstock_waiting(claim: Claim, waiting: Waiting) -> None:
    """A claim of this process has to wait; called once a wait."""


@hookspec
def penstock_released(lease: Lease, held_seconds: float) -> None:
    """A lease of this process was given back."""


@hookspec
def penstock_lost(lease: Lease) -> None:
    """A lease of this process can no longer be trusted; called from the heartbeat's thread."""


@hookspec
def penstock_limit_changed(key: str, capacity: int | None) -> None:
    """This process changed a limit; capacity None is unlimited."""


@hookspec(firstresult=True)
def penstock_holder_alive(claim: ClaimRow) -> bool | None:
    """Whether the run behind a lease still lives: False ends it at once, None says that this plugin cannot tell."""


@hookspec(firstresult=True)
def penstock_holder_url(claim: Claim) -> str | None:
    """Where a person can look at the holder of a claim."""


@hookspec
def penstock_add_command(group: click.Group) -> None:
    """Add a command to `penstock`."""
