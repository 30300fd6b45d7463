"""What one installation may claim, and what each claim must pass under the configuration in force."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from penstock import rules
from penstock.claim import Claim, ClaimKind, PoolsLike, parse_pools
from penstock.config import Concurrency, check_within
from penstock.errors import ClaimError, LeaseLost
from penstock.store.contract import ClaimState, Deployment

if TYPE_CHECKING:
    import pluggy

    from penstock.lease import Lease
    from penstock.leases import Leases
    from penstock.settings import Settings
    from penstock.store.contract import Store


class Configured:
    """An engine's part that knows the configuration, as it was last read from the store."""

    leases: Leases
    """What this process holds; another one's in a forked child."""

    def __init__(
        self,
        store: Store,
        host: str,
        deployment: str,
        *,
        fingerprint: str | None,
        settings: Settings,
        hook: pluggy.HookRelay,
    ) -> None:
        self.store, self.host, self.deployment = store, host, deployment
        self.settings, self.hook = settings, hook
        self._fingerprint = fingerprint
        self._checked = False
        self._read_anew()

    def _read_anew(self) -> None:
        """Whatever was read before counts no more."""
        self._configuration: tuple[int, Concurrency] | None = None
        self._room_seen: tuple[float, Mapping[str, int]] = (-math.inf, {})

    def claim(
        self,
        *pools: PoolsLike,
        tags: Mapping[str, str] | None = None,
        priority: int = 0,
        run_id: str | None = None,
        op_id: str | None = None,
        attempt: int = 1,
        in_run: bool = False,
        parent_id: str | None = None,
        name: str | None = None,
        step: str | None = None,
        url: str | None = None,
    ) -> Claim:
        """An op claim of this installation. Raises ClaimError on unusable names or slots."""
        return Claim(
            kind=ClaimKind.OP,
            host=self.host,
            deployment=self.deployment,
            run_id=run_id,
            op_id=op_id,
            attempt=attempt,
            pools=parse_pools(pools),
            tags=tags or {},
            priority=priority,
            in_run=in_run,
            parent_id=parent_id,
            name=name,
            step=step,
            url=url,
        )

    def run_claim(
        self,
        run_id: str,
        *pools: PoolsLike,
        tags: Mapping[str, str] | None = None,
        priority: int = 0,
        within: Mapping[str, Any] | None = None,
        parent_id: str | None = None,
        name: str | None = None,
        url: str | None = None,
    ) -> Claim:
        """A run claim of this installation; all who make it for one run id share its lease.

        `parent_id` is the lease that waits for this run to end, where one does: what tells a circle of waits.

        `within` are the run's own limits on its ops, as in the configuration's `ops` block; the first claim of a run
        fixes them. Raises ClaimError when they are wrong.
        """
        if within is not None:
            check_within(within)
        return Claim(
            kind=ClaimKind.RUN,
            host=self.host,
            deployment=self.deployment,
            run_id=run_id,
            pools=parse_pools(pools),
            tags=tags or {},
            priority=priority,
            within=within,
            parent_id=parent_id,
            name=name,
            url=url,
        )

    def configuration(self, *, fresh: bool = False) -> tuple[int, Concurrency]:
        """(version, configuration) as last read; `fresh` reads it again.

        The first look also registers the installation: raises DeploymentConflict when another one has its name.
        """
        if fresh or not self._checked:  # an upgrade that bars us makes a new version
            self.store.check_schema()
            self._checked = True
        if self._fingerprint is not None:
            self.store.register(Deployment(self.host, self.deployment, self._fingerprint))
            self._fingerprint = None
        if fresh or self._configuration is None:
            stored = self.store.configuration()
            self._configuration = (stored.version, Concurrency.from_document(stored.document))
        return self._configuration

    def standing(self, claim: Claim, *, again: bool = False) -> rules.Standing:
        """What is held around an op: by its run, and by the op around a nested block.

        Raises ClaimError for an op of a run under limits whose run has not even been claimed; LeaseLost when that had
        been so `again` a moment ago.
        """
        if claim.kind is not ClaimKind.OP:
            return rules.ALONE
        outer = self.leases.find(claim.parent_id) if claim.parent_id is not None else None
        held = _slots_by_limit(outer)
        nested = bool(held) and outer is not None and outer.claim.kind is ClaimKind.OP
        if not claim.in_run:
            return rules.Standing(held, nested=nested)
        run = self.store.run_lease(self.run_claim(claim.run_id or "").holder or "")
        if run is None and again:
            raise LeaseLost(f"{claim}: the lease of its run ended or was lost while it waited; claim the run again")
        if run is None:
            raise ClaimError(
                f"{claim}: its run has no lease; claim the run first (engine.run_claim), or claim without in_run"
            )
        return rules.Standing(
            held={**run.held, **held},
            within=run.within,
            run_claim_id=run.claim_id,
            run_waits=run.state not in (ClaimState.HELD, ClaimState.GRANTED),
            run_skipped=run.state is ClaimState.SKIPPED,
            nested=nested,
        )

    def demands(
        self, claim: Claim, concurrency: Concurrency, standing: rules.Standing = rules.ALONE
    ) -> tuple[rules.Demand, ...]:
        """What a claim must pass under this configuration, plugins heard."""
        demands = rules.demands(claim, concurrency, standing)
        for adjusted in self.hook.penstock_adjust_demands(claim=claim, demands=demands, concurrency=concurrency):
            demands = tuple(sorted(adjusted)) if adjusted is not None else demands
        return demands

    def root_pools_full(self, claim: Claim, concurrency: Concurrency) -> tuple[str, ...]:
        """The pools for which a run is held back that has not begun: those of its roots, all of them full.

        Empty when it may start, and for a run that no limit bounds: nobody else could use what it would take. Of
        several runs that look at once more than one may find the same room; which comes first is left to chance.
        """
        if not claim.roots or not all(claim.roots):
            return ()
        if all(demand.capacity is None for demand in self.demands(claim, concurrency)):
            return ()
        return rules.root_pools_full(claim.roots, self._room(), concurrency)

    def _room(self) -> Mapping[str, int]:
        """Pool → free slots less those that waiters want. All claims of this process share one look in a while."""
        now = time.monotonic()
        read_at, room = self._room_seen
        if now - read_at >= self.settings.poll_max_seconds:
            rows = [(row.key.partition(":"), row) for row in self.store.limit_rows()]
            room = {
                name: row.capacity - row.held - row.waiting
                for (kind, _, name), row in rows
                if kind == rules.LimitKind.POOL and row.capacity is not None
            }
            self._room_seen = (now, room)
        return room


def _slots_by_limit(lease: Lease | None) -> dict[str, int]:
    return dict(Counter(slot.limit for slot in lease.slots)) if lease is not None else {}
