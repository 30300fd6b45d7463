"""The instruments and spans of the OpenTelemetry plugin. Units and names follow OpenTelemetry's conventions.

No metric carries what grows without bound: no claim, run or op id. Limits of one run or of one tag value are counted
together, under the key of their rule.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import penstock
from opentelemetry import context, metrics, trace
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.trace import Status, StatusCode

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from penstock.claim import Claim
    from penstock.decision import Reason
    from penstock.hookspecs import Why
    from penstock.lease import Lease
    from penstock.store.contract import LimitRow

log = logging.getLogger("penstock.plugins.opentelemetry")
# The API's own are for milliseconds. From a step without a wait to a day.
BUCKETS = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600, 10800, 43200, 86400)

LimitRows = Callable[[], "tuple[LimitRow, ...]"]


def series(key: str) -> str:
    """The key of a limit, or of the rule that it is one instance of: `run_ops`, `run_tag:KEY=*`, `run_op_tag:KEY`."""
    kind, _, rest = key.partition(":")
    if kind == "run_ops":
        return kind
    if kind == "run_op_tag":
        rest = rest.partition(":")[2]
    elif kind != "run_tag":
        return key
    tag, per_value, _ = rest.partition("=*:")
    return f"{kind}:{tag}=*" if per_value else f"{kind}:{rest}"


class Instruments:
    """One meter and one tracer. `limit_rows` is asked when a reader collects; None makes no gauges."""

    def __init__(
        self,
        meter_provider: metrics.MeterProvider | None,
        tracer_provider: trace.TracerProvider | None,
        limit_rows: LimitRows | None,
    ) -> None:
        meter = metrics.get_meter("penstock", penstock.__version__, meter_provider)
        self._tracer = trace.get_tracer("penstock", penstock.__version__, tracer_provider)
        self._parents: WeakKeyDictionary[Lease, Context] = WeakKeyDictionary()

        def seconds(name: str, description: str) -> metrics.Histogram:
            return meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=BUCKETS)

        self._claim_wait = seconds("penstock.claim.wait.duration", "From a claim's first step to its lease or refusal.")
        self._claim_hold = seconds("penstock.claim.hold.duration", "From the lease to its release or loss.")
        self._limit_wait = seconds("penstock.limit.wait.duration", "The wait of each lease, once for each limit.")
        self._limit_hold = seconds("penstock.limit.hold.duration", "The hold of each lease, once for each limit.")
        self._refusals = meter.create_counter("penstock.claim.refusals", "{claim}", "Claims that got no lease.")
        self._losses = meter.create_counter("penstock.claim.losses", "{claim}", "Leases lost while they were held.")
        self._expiries = meter.create_counter(
            "penstock.claim.expiries", "{claim}", "Claims that a sweep of this process ended, their holder being gone."
        )
        if limit_rows is not None:
            # Gauges, not sums: every process that has them shows the same store, and adding them up means nothing.
            meter.create_observable_gauge(
                "penstock.limit.held", [_observing(limit_rows, _held)], "{slot}", "Slots of a limit that are held."
            )
            meter.create_observable_gauge(
                "penstock.limit.capacity", [_observing(limit_rows, _capacity)], "{slot}", "Slots that a limit has."
            )
            meter.create_observable_gauge(
                "penstock.limit.waiting", [_observing(limit_rows, _waiting)], "{claim}", "Claims that wait for a limit."
            )

    def waiting(self, reasons: Sequence[Reason]) -> None:
        """Note in the span around the claim, whosever it is, what bars it."""
        limits = [reason.limit for reason in reasons]
        trace.get_current_span().add_event("penstock.claim.waiting", {"penstock.limits": limits})

    def granted(self, lease: Lease, waited_seconds: float) -> None:
        """A wait that ended well."""
        self._parents[lease] = context.get_current()
        self._waited(lease.claim, waited_seconds, "granted")
        for key in lease.fences:
            self._limit_wait.record(waited_seconds, {**_of(lease.claim), "penstock.limit": series(key)})

    def refused(self, claim: Claim, reasons: Sequence[Reason], why: Why, waited_seconds: float) -> None:
        """A wait that ended without a lease."""
        self._waited(claim, waited_seconds, why)
        limit = {"penstock.limit": series(reasons[0].limit)} if reasons else {}
        self._refusals.add(1, {**_of(claim), **limit, "penstock.outcome": why})

    def held(self, lease: Lease, held_seconds: float, *, lost: bool) -> None:
        """A hold that ended, lost or not."""
        outcome = "lost" if lost else "released"
        self._claim_hold.record(held_seconds, {**_of(lease.claim), "penstock.outcome": outcome})
        for key in lease.fences:
            self._limit_hold.record(held_seconds, {**_of(lease.claim), "penstock.limit": series(key)})
        # A loss is told from the heartbeat's thread, where the span around the hold is not known.
        parent = self._parents.pop(lease, None)
        status = None
        if lost:
            self._losses.add(1, _of(lease.claim))
            status = Status(StatusCode.ERROR, "the lease was lost")
        self._span("penstock.claim.hold", lease.claim, held_seconds, outcome, parent, status)

    def expired(self, claim: Claim, *, held: bool) -> None:
        """A claim that nobody stood behind any more."""
        self._expiries.add(1, {**_of(claim), "penstock.claim.held": held})

    def _waited(self, claim: Claim, seconds: float, outcome: str) -> None:
        self._claim_wait.record(seconds, {**_of(claim), "penstock.outcome": outcome})
        self._span("penstock.claim.wait", claim, seconds, outcome)

    def _span(
        self,
        name: str,
        claim: Claim,
        seconds: float,
        outcome: str,
        parent: Context | None = None,
        status: Status | None = None,
    ) -> None:
        """Made when it is over, with its true start: nothing is kept for claims that end elsewhere or never."""
        now = time.time_ns()
        attributes: dict[str, Any] = {
            **_of(claim),
            "penstock.claim.id": claim.claim_id,
            "penstock.claim.attempt": claim.attempt,
            "penstock.pools": [f"{pool}:{slots}" for pool, slots in sorted(claim.pools.items())],
            "penstock.outcome": outcome,
        }
        if claim.run_id is not None:
            attributes["penstock.run.id"] = claim.run_id
        if claim.op_id is not None:
            attributes["penstock.op.id"] = claim.op_id
        span = self._tracer.start_span(name, parent, attributes=attributes, start_time=now - int(seconds * 1e9))
        if status is not None:
            span.set_status(status)
        span.end(now)


def _of(claim: Claim) -> dict[str, Any]:
    """The attributes of every metric and span of a claim: few values each."""
    return {
        "penstock.host": claim.host,
        "penstock.deployment": claim.deployment,
        "penstock.claim.kind": str(claim.kind),
    }


def _observing(
    limit_rows: LimitRows, figures: Callable[[Iterable[LimitRow]], Counter[str]]
) -> Callable[[CallbackOptions], Iterator[Observation]]:
    def observe(_: CallbackOptions) -> Iterator[Observation]:
        try:
            rows = limit_rows()
        except Exception as error:  # whatever the store raises; the reader goes on with the other instruments
            log.warning("the gauges show nothing, the store did not answer: %s", error)
            return
        for key, figure in figures(rows).items():
            yield Observation(figure, {"penstock.limit": key})

    return observe


def _held(rows: Iterable[LimitRow]) -> Counter[str]:
    figures: Counter[str] = Counter()
    for row in rows:
        figures[series(row.key)] += row.held
    return figures


def _waiting(rows: Iterable[LimitRow]) -> Counter[str]:
    figures: Counter[str] = Counter()
    for row in rows:
        figures[series(row.key)] += row.waiting
    return figures


def _capacity(rows: Iterable[LimitRow]) -> Counter[str]:
    """Of limits that stand alone; many values of one rule have no capacity together."""
    return Counter({row.key: row.capacity for row in rows if row.capacity is not None and series(row.key) == row.key})
