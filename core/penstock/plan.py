"""What a configuration would change in a store, and whom each change touches now. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from penstock.config import Concurrency
from penstock.forecast import Resolve, may_start
from penstock.queue import Queue
from penstock.report import listed, named
from penstock.rules import Demand, LimitKind, Source, configured_keys, limit_kind, resolve_limit
from penstock.store.contract import ClaimRow, Snapshot


@dataclass(frozen=True, slots=True)
class Change:
    """One place of the configuration that is not as before; None where it is not set."""

    path: str
    before: Any
    after: Any

    def __str__(self) -> str:
        if self.before is None:
            return f"+ {self.path}: {self.after}"
        return (
            f"- {self.path}: {self.before}" if self.after is None else f"~ {self.path}: {self.before} -> {self.after}"
        )


@dataclass(frozen=True, slots=True)
class Standing:
    """What the configuration gives to one limit. `granularity` None where it has no meaning."""

    capacity: int | None
    source: Source
    granularity: str | None

    @classmethod
    def of(cls, key: str, concurrency: Concurrency) -> Standing:
        """As `concurrency` has it."""
        pool = limit_kind(key) is LimitKind.POOL
        granularity = concurrency.pool_granularity(key.removeprefix("pool:")).value if pool else None
        return cls(*resolve_limit(key, concurrency), granularity)

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"capacity": self.capacity, "source": self.source.value, "granularity": self.granularity}


@dataclass(frozen=True, slots=True)
class Touched:
    """A limit that changes, and the claims that it concerns now.

    `uncounted` run already and would be held to it, but took no slot of it when they started.
    """

    key: str
    before: Standing
    after: Standing
    held: int
    holders: tuple[ClaimRow, ...]
    waiters: tuple[ClaimRow, ...]
    starting: tuple[ClaimRow, ...]
    impossible: tuple[ClaimRow, ...]
    uncounted: tuple[ClaimRow, ...]

    @property
    def excess(self) -> int:
        """How many slots are held over the new capacity."""
        return 0 if self.after.capacity is None else max(0, self.held - self.after.capacity)

    @property
    def effect(self) -> str:
        """What happens, in one line."""
        parts = []
        if self.excess:
            verb = "drains" if self.excess == 1 else "drain"
            parts.append(f"{self.held} held, {self.excess} over the new {self.after.capacity} {verb}")
        if self.starting:
            parts.append(f"{_waiters(len(self.starting))} may start")
        if self.impossible:
            parts.append(f"{_waiters(len(self.impossible))} would need more than that")
        if staying := len(self.waiters) - len(self.starting) - len(self.impossible):
            parts.append(f"{_waiters(staying)} must go on waiting")
        if self.uncounted:
            verb = "runs" if len(self.uncounted) == 1 else "run"
            parts.append(f"{len(self.uncounted)} that already {verb} will not be counted")
        if self.before.granularity != self.after.granularity:
            parts.append(f"granularity {self.before.granularity} -> {self.after.granularity}, holders keep theirs")
        return self._headline() + (": " + ", ".join(parts) if parts else "")

    def _headline(self) -> str:
        before, after = self.before, self.after
        if before.source is not after.source and after.source in (Source.DEFAULT, Source.NONE):
            deleted = "deleted: " if before.source in (Source.EXPLICIT, Source.RULE) else ""
            return deleted + ("falls to the default" if after.source is Source.DEFAULT else "becomes unlimited")
        if before.capacity == after.capacity:
            return f"stays at {'unlimited' if after.capacity is None else after.capacity}"
        if after.capacity == 0:
            return "closes"
        if before.capacity is None:
            return "becomes limited"
        return "grows" if after.capacity is None or after.capacity > before.capacity else "shrinks"

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON values; claims by their ids."""
        return {
            "key": self.key,
            "kind": limit_kind(self.key).value,
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
            "effect": self.effect,
            "held": self.held,
            "excess": self.excess,
            **{
                name: [row.claim.claim_id for row in rows]
                for name, rows in (
                    ("holders", self.holders),
                    ("waiters", self.waiters),
                    ("may_start", self.starting),
                    ("impossible", self.impossible),
                    ("uncounted", self.uncounted),
                )
            },
        }


def touches(change: Change, touched: Touched) -> bool:
    """Whether a limit that changes does so by this change."""
    path, kind = change.path.removeprefix("concurrency."), limit_kind(touched.key)
    before, after = touched.before, touched.after
    if path == "pools.default_limit":
        return Source.DEFAULT in (before.source, after.source)
    if path == "pools.granularity":
        return before.granularity != after.granularity
    if path.startswith("pools.limits."):
        return touched.key == f"pool:{path.removeprefix('pools.limits.').rpartition('.')[0]}"
    if path == "runs.max_concurrent_runs":
        return kind is LimitKind.RUNS
    if path == "ops.max_concurrent":
        return kind is LimitKind.RUN_OPS
    for block, of, parts in (("runs", LimitKind.RUN_TAG, 1), ("ops", LimitKind.RUN_OP_TAG, 2)):
        if kind is of and path.startswith(f"{block}.tag_concurrency_limits["):
            rule = unquote(path.partition("[")[2].removesuffix("]"))
            limited = unquote(touched.key.split(":", parts)[parts])
            return limited == rule or (rule.endswith("=*") and limited.startswith(f"{rule}:"))
    return False


@dataclass(frozen=True, slots=True)
class Plan:
    """From the configuration in force as `version` to `after`. `kept` pools stay though the file does not name them."""

    version: int
    after: Concurrency
    changes: tuple[Change, ...]
    touched: tuple[Touched, ...]
    kept: Mapping[str, int]

    @property
    def idle(self) -> tuple[Change, ...]:
        """The changes that concern nobody now: no limit that exists changes by them."""
        return tuple(change for change in self.changes if not any(touches(change, each) for each in self.touched))

    def lines(self) -> Iterator[str]:
        """For people: the changes, then each limit with those whom it concerns now, then the pools that stay."""
        yield from map(str, self.changes)
        for touched in self.touched:
            yield ""
            yield f"{touched.key}  {_capacity(touched.before)} -> {_capacity(touched.after)}"
            yield f"  {touched.effect}"
            yield from _claims("held by", touched.holders)
            yield from _claims("may start", touched.starting)
            yield from _claims("waiting", [row for row in touched.waiters if row not in touched.starting])
        if self.changes and not self.touched:
            yield "no limit that exists now is touched"
        elif self.idle:
            yield ""
            yield f"touches nobody now: {listed([change.path for change in self.idle])}"
        for name, limit in self.kept.items():
            yield f"  pool {name} stays at {limit} (not in FILE; --prune deletes it)"
        if not self.changes:
            yield "nothing to change"

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON values: `penstock plan --json`."""
        return {
            "version": self.version,
            "changes": [
                {"path": change.path, "before": change.before, "after": change.after} for change in self.changes
            ],
            "limits": [touched.as_dict() for touched in self.touched],
            "kept": [{"name": name, "limit": limit} for name, limit in self.kept.items()],
        }


def difference(before: Concurrency, after: Concurrency) -> tuple[Change, ...]:
    """What changes, place by place."""
    old, new = _flat(before.document()), _flat(after.document())
    return tuple(
        Change(path, old.get(path), new.get(path))
        for path in sorted(old.keys() | new.keys())
        if old.get(path) != new.get(path)
    )


def touched_limits(
    before: Concurrency, after: Concurrency, snapshot: Snapshot, resolve: Resolve
) -> tuple[Touched, ...]:
    """The limits that change; `resolve` says what a claim must pass under `after`."""
    wanted = {row.claim.claim_id: tuple(resolve(row.claim)) for row in snapshot.claims}
    rows = {row.key: row for row in snapshot.limits}
    keys = {*rows, *configured_keys(before), *configured_keys(after)}
    keys |= {demand.key for demands in wanted.values() for demand in demands}
    starting = {row.claim.claim_id for row in may_start(snapshot, lambda claim: wanted[claim.claim_id])}
    queue, touched = Queue(snapshot), []
    for key in sorted(keys):
        old, new = Standing.of(key, before), Standing.of(key, after)
        if old == new:
            continue
        holders = tuple(queue.holders(key))
        asks = {claim_id: demand for claim_id, demands in wanted.items() if (demand := _on(key, demands)) is not None}
        waiting = tuple(row for row in queue.waiters if row.claim.claim_id in asks or key in row.wants)
        uncounted = asks.keys() - {row.claim.claim_id for row in holders}
        would_count = (row for row in queue.leases if row.claim.claim_id in uncounted)
        touched.append(
            Touched(
                key,
                old,
                new,
                held=rows[key].held if key in rows else 0,
                holders=holders,
                waiters=waiting,
                starting=tuple(row for row in waiting if row.claim.claim_id in starting),
                impossible=tuple(
                    row for row in waiting if row.claim.claim_id in asks and asks[row.claim.claim_id].impossible
                ),
                uncounted=tuple(would_count) if new.source is Source.RULE else (),
            )
        )
    return tuple(touched)


def _on(key: str, demands: tuple[Demand, ...]) -> Demand | None:
    return next((demand for demand in demands if demand.key == key), None)


def _capacity(standing: Standing) -> str:
    return "unlimited" if standing.capacity is None else str(standing.capacity)


def _claims(word: str, rows: Sequence[ClaimRow]) -> Iterator[str]:
    if rows:
        yield f"  {word}: {listed([named(row.claim) for row in rows])}"


def _waiters(count: int) -> str:
    return "1 waiter" if count == 1 else f"{count} waiters"


def _flat(value: Any, path: str = "concurrency") -> dict[str, Any]:
    if isinstance(value, dict):
        return {key: leaf for name, part in value.items() for key, leaf in _flat(part, f"{path}.{name}").items()}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        rules = {}
        for rule in value:
            kind = rule.get("value")
            suffix = "" if kind is None else "=*" if isinstance(kind, dict) else f"={kind.replace('*', '%2A')}"
            rules[f"{path}[{rule['key']}{suffix}]"] = rule["limit"]
        return rules
    return {path: value}
