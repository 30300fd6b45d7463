"""Metrics and spans by OpenTelemetry. Nothing is imported and nothing done until the program itself has loaded it."""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

from penstock.hookspecs import hookimpl

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider
    from penstock.claim import Claim
    from penstock.decision import Reason, Waiting
    from penstock.engine import Engine
    from penstock.hookspecs import Why
    from penstock.lease import Lease
    from penstock.store.contract import LimitRow

    from penstock_plugins.instruments import Instruments

GAUGE_SECONDS_VARIABLE = "PENSTOCK_OTEL_GAUGE_SECONDS"


class OpenTelemetryPlugin:
    """Tells the providers given here, else the global ones, what becomes of claims.

    The gauges read the store when a reader collects, at most every `gauge_seconds`; 0 leaves them out.
    """

    def __init__(
        self,
        meter_provider: MeterProvider | None = None,
        tracer_provider: TracerProvider | None = None,
        *,
        gauge_seconds: float | None = None,
    ) -> None:
        self._meter_provider, self._tracer_provider = meter_provider, tracer_provider
        self._gauge_seconds = _gauge_seconds() if gauge_seconds is None else gauge_seconds
        self._engines: list[weakref.ref[Engine]] = []
        self._lock = threading.Lock()
        self._made: Instruments | None = None
        self._rows: tuple[LimitRow, ...] = ()
        self._read_at = float("-inf")

    # -- hooks -------------------------------------------------------------------------------------------------------

    @hookimpl(trylast=True)
    def penstock_engine_started(self, engine: Engine) -> None:
        """From now on the gauges show this engine's store."""
        with self._lock:
            others = [known for known in self._engines if known() not in (None, engine)]
            self._engines = [*others, weakref.ref(engine)]
            self._read_at = float("-inf")
        self._instruments()

    @hookimpl(trylast=True)
    def penstock_engine_closed(self, engine: Engine) -> None:
        """The gauges show the store of the engine before it, if there is one."""
        with self._lock:
            self._engines = [known for known in self._engines if known() not in (None, engine)]
            self._read_at = float("-inf")

    @hookimpl(trylast=True)
    def penstock_waiting(self, waiting: Waiting) -> None:
        """An event in the span around the claim: which limits bar it."""
        if (instruments := self._instruments()) is not None:
            instruments.waiting(waiting.reasons)

    @hookimpl(trylast=True)
    def penstock_granted(self, lease: Lease, waited_seconds: float) -> None:
        """The wait is over."""
        if (instruments := self._instruments()) is not None:
            instruments.granted(lease, waited_seconds)

    @hookimpl(trylast=True)
    def penstock_refused(self, claim: Claim, reasons: Sequence[Reason], why: Why, waited_seconds: float) -> None:
        """The wait is over, for nothing."""
        if (instruments := self._instruments()) is not None:
            instruments.refused(claim, reasons, why, waited_seconds)

    @hookimpl(trylast=True)
    def penstock_released(self, lease: Lease, held_seconds: float) -> None:
        """The hold is over."""
        if (instruments := self._instruments()) is not None:
            instruments.held(lease, held_seconds, lost=False)

    @hookimpl(trylast=True)
    def penstock_lost(self, lease: Lease) -> None:
        """The hold is over, before its holder meant it to be."""
        if (instruments := self._instruments()) is not None:
            instruments.held(lease, time.monotonic() - lease.granted_at, lost=True)

    @hookimpl(trylast=True)
    def penstock_expired(self, claim: Claim, held_seconds: float | None) -> None:
        """Counted where it is found, under the host and deployment that it was of."""
        if (instruments := self._instruments()) is not None:
            instruments.expired(claim, held=held_seconds is not None)

    # -- behind them -------------------------------------------------------------------------------------------------

    def _instruments(self) -> Instruments | None:
        """Made as soon as they may be of use: who sets up an SDK has imported `opentelemetry` for it."""
        if self._made is None and (self._meter_provider is not None or "opentelemetry" in sys.modules):
            with self._lock:
                if self._made is None:
                    self._made = self._make()
        return self._made

    def _make(self) -> Instruments | None:
        try:
            from penstock_plugins.instruments import Instruments  # noqa: PLC0415  # opentelemetry loads here
        except ImportError:  # some other part of the namespace `opentelemetry`, without the API
            return None
        rows = self.limit_rows if self._gauge_seconds > 0 else None
        return Instruments(self._meter_provider, self._tracer_provider, rows)

    def limit_rows(self) -> tuple[LimitRow, ...]:
        """The limits of the store of the engine that started last, not older than `gauge_seconds`."""
        with self._lock:
            engine = next((engine for known in reversed(self._engines) if (engine := known()) is not None), None)
            if engine is None:
                return ()
            if time.monotonic() - self._read_at >= self._gauge_seconds:
                self._read_at = time.monotonic()
                self._rows = ()  # a store that does not answer shows nothing, rather than what it was
                self._rows = engine.store.limit_rows()
            return self._rows


def _gauge_seconds() -> float:
    text = os.environ.get(GAUGE_SECONDS_VARIABLE, "15")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"{GAUGE_SECONDS_VARIABLE}={text!r}: seconds of at least 0 are expected")
    return seconds


plugin = OpenTelemetryPlugin()
