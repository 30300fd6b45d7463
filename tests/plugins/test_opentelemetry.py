"""Metrics and spans of a real engine, read back from OpenTelemetry's SDK."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from configuring import configure
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from penstock.decision import Reason
from penstock.engine import Engine
from penstock.errors import StoreUnavailable, WaitTimeout
from penstock_plugins.instruments import BUCKETS, series
from penstock_plugins.opentelemetry import OpenTelemetryPlugin

OP = {"penstock.host": "process", "penstock.deployment": "process", "penstock.claim.kind": "op"}


@dataclass
class Telemetry:
    """A plugin on an SDK of its own, and what it told."""

    gauge_seconds: float = 0.001
    reader: InMemoryMetricReader = field(default_factory=InMemoryMetricReader)
    exporter: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)

    def __post_init__(self) -> None:
        self.meters = MeterProvider([self.reader])
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.plugin = OpenTelemetryPlugin(self.meters, self.tracers, gauge_seconds=self.gauge_seconds)

    def metrics(self) -> dict[str, Any]:
        """Each metric collected now, by name."""
        data = self.reader.get_metrics_data()
        if data is None:
            return {}
        return {
            metric.name: metric
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def values(self, name: str, attribute: str = "penstock.limit") -> dict[Any, Any]:
        """The points of a metric by one attribute: a histogram's as (count, sum), others' value."""
        metric = self.metrics().get(name)
        return {
            point.attributes.get(attribute): (point.count, point.sum) if hasattr(point, "sum") else point.value
            for point in (metric.data.data_points if metric is not None else ())
        }

    def spans(self) -> list[Any]:
        return list(self.exporter.get_finished_spans())


@pytest.fixture
def telemetry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Telemetry]:
    """In place of the installed plugin, which would tell the global providers the same."""
    monkeypatch.setenv("PENSTOCK_PLUGINS_DISABLED", "opentelemetry")
    made = Telemetry()
    yield made
    made.meters.shutdown()


@pytest.fixture
def engine(new_engine: Any, telemetry: Telemetry) -> Engine:
    made: Engine = new_engine(telemetry.plugin)
    made.hook.penstock_engine_started(engine=made)
    configure(made, pools={"limits": {"a": 1, "c": 5}}, runs={"max_concurrent_runs": 2})
    return made


def test_wait_and_hold_of_a_claim(engine: Engine, telemetry: Telemetry) -> None:
    with engine.hold("a", "c:2"), pytest.raises(WaitTimeout):
        engine.acquire(engine.claim("a"), wait_timeout_seconds=0.1)
    metrics = telemetry.metrics()
    wait, hold = metrics["penstock.claim.wait.duration"], metrics["penstock.claim.hold.duration"]
    (waited,) = [p for p in wait.data.data_points if p.attributes["penstock.outcome"] == "granted"]
    assert (wait.unit, waited.count, waited.attributes) == ("s", 1, OP | {"penstock.outcome": "granted"})
    assert waited.explicit_bounds == BUCKETS
    (held,) = hold.data.data_points
    assert (hold.unit, held.count, held.attributes) == ("s", 1, OP | {"penstock.outcome": "released"})
    assert 0.1 <= held.sum < 10
    for name in ("penstock.limit.wait.duration", "penstock.limit.hold.duration"):
        assert {key: count for key, (count, _) in telemetry.values(name).items()} == {"pool:a": 1, "pool:c": 1}


def test_gauges_show_the_store(engine: Engine, telemetry: Telemetry) -> None:
    with engine.hold("c:2"), engine.hold("a"):
        request = engine.request(engine.claim("a"))
        request.step()
        metrics = telemetry.metrics()
        assert {metrics[f"penstock.limit.{name}"].unit for name in ("held", "capacity")} == {"{slot}"}
        assert metrics["penstock.limit.waiting"].unit == "{claim}"
        held, waiting = telemetry.values("penstock.limit.held"), telemetry.values("penstock.limit.waiting")
        assert (held["pool:a"], held["pool:c"], waiting["pool:a"]) == (1, 2, 1)
        capacity = telemetry.values("penstock.limit.capacity")
        assert {key: capacity[key] for key in ("pool:a", "pool:c", "runs")} == {"pool:a": 1, "pool:c": 5, "runs": 2}
        request.withdraw()
    time.sleep(telemetry.gauge_seconds)
    assert telemetry.values("penstock.limit.held")["pool:c"] == 0


def test_gauges_leave_together_what_would_grow_without_bound(engine: Engine, telemetry: Telemetry) -> None:
    per_value = {"key": "day", "value": {"applyLimitPerUniqueValue": True}, "limit": 1}
    configure(engine, runs={"tag_concurrency_limits": [per_value, {"key": "team", "value": "ml", "limit": 2}]})
    for day in ("1", "2", "3"):
        engine.acquire(engine.run_claim(f"r{day}", tags={"day": day, "team": "ml" if day == "1" else "web"}))
    held, capacity = telemetry.values("penstock.limit.held"), telemetry.values("penstock.limit.capacity")
    assert {key: held[key] for key in held if key.startswith("run_tag:")} == {"run_tag:day=*": 3, "run_tag:team=ml": 1}
    assert [key for key in capacity if key.startswith("run_tag:")] == ["run_tag:team=ml"]
    assert telemetry.values("penstock.limit.wait.duration")["run_tag:day=*"][0] == 3


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("pool:a=*:b", "pool:a=*:b"),
        ("runs", "runs"),
        ("run_tag:team", "run_tag:team"),
        ("run_tag:team=ml", "run_tag:team=ml"),
        ("run_tag:team=*:ml", "run_tag:team=*"),
        ("run_ops:airflow/prod/etl%2Fmanual__1", "run_ops"),
        ("run_op_tag:airflow/prod/1:db=dwh", "run_op_tag:db=dwh"),
        ("run_op_tag:airflow/prod/1:db=*:dwh", "run_op_tag:db=*"),
    ],
)
def test_series(key: str, shown: str) -> None:
    assert series(key) == shown


def test_gauges_read_the_store_at_most_every_so_often(new_engine: Any) -> None:
    telemetry = Telemetry(gauge_seconds=60)
    engine = new_engine(telemetry.plugin)
    engine.hook.penstock_engine_started(engine=engine)
    configure(engine, pools={"limits": {"a": 1}})
    assert telemetry.values("penstock.limit.held") == {"pool:a": 0}
    with engine.hold("a"):
        assert telemetry.values("penstock.limit.held") == {"pool:a": 0}, "from the first reading"
    telemetry.meters.shutdown()


def test_no_gauges_where_they_are_turned_off(new_engine: Any) -> None:
    telemetry = Telemetry(gauge_seconds=0)
    engine = new_engine(telemetry.plugin)
    engine.hook.penstock_engine_started(engine=engine)
    with engine.hold("a"):
        assert "penstock.claim.wait.duration" in telemetry.metrics()
        assert "penstock.limit.held" not in telemetry.metrics()
    telemetry.meters.shutdown()


def test_a_store_that_is_away_or_closed_shows_nothing(
    engine: Engine, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away() -> None:
        raise StoreUnavailable("away")

    engine.acquire(engine.claim("a")).release()
    with monkeypatch.context() as patch:
        patch.setattr(engine.store, "limit_rows", away)
        assert telemetry.values("penstock.limit.held") == {}
        assert "penstock.claim.wait.duration" in telemetry.metrics(), "the others go on"
    assert "the gauges show nothing, the store did not answer: away" in caplog.text
    time.sleep(telemetry.gauge_seconds)
    assert telemetry.values("penstock.limit.held")["pool:a"] == 0
    engine.hook.penstock_engine_closed(engine=engine)
    assert telemetry.values("penstock.limit.held") == {}


def test_spans_of_a_wait_and_a_hold(engine: Engine, telemetry: Telemetry) -> None:
    tracer = telemetry.tracers.get_tracer("of the host")
    run = engine.acquire(engine.run_claim("r"))
    telemetry.exporter.clear()
    with tracer.start_as_current_span("task"):
        claim = engine.claim("a", "c:2", run_id="r", op_id="load", in_run=True)
        lease = engine.acquire(claim)
        with tracer.start_as_current_span("work"), pytest.raises(WaitTimeout):
            engine.acquire(engine.claim("a"), wait_timeout_seconds=0.1)
        lease.release()
    run.release()
    wait, vain, work, hold, task, _ = telemetry.spans()
    assert (vain.name, vain.parent.span_id) == ("penstock.claim.wait", work.context.span_id)
    assert (wait.name, hold.name) == ("penstock.claim.wait", "penstock.claim.hold")
    assert wait.parent.span_id == hold.parent.span_id == task.context.span_id
    assert hold.attributes == OP | {
        "penstock.run.id": "r",
        "penstock.op.id": "load",
        "penstock.claim.id": claim.claim_id,
        "penstock.claim.attempt": 1,
        "penstock.pools": ("a:1", "c:2"),
        "penstock.outcome": "released",
    }
    assert wait.start_time <= wait.end_time <= work.start_time
    assert hold.end_time - hold.start_time >= work.end_time - work.start_time >= 100_000_000
    assert work.end_time <= hold.end_time
    assert [(event.name, event.attributes) for event in work.events] == [
        ("penstock.claim.waiting", {"penstock.limits": ("pool:a",)})
    ]


def test_a_lost_lease(engine: Engine, telemetry: Telemetry) -> None:
    with telemetry.tracers.get_tracer("of the host").start_as_current_span("task") as task:
        lease = engine.acquire(engine.claim("a"))
    engine.session_is_gone(lease.session_id)
    hold = telemetry.spans()[-1]
    assert (hold.name, hold.attributes["penstock.outcome"]) == ("penstock.claim.hold", "lost")
    assert hold.status.status_code is StatusCode.ERROR
    assert hold.parent.span_id == task.get_span_context().span_id, "known, though told from another place"
    assert telemetry.values("penstock.claim.losses", "penstock.host") == {"process": 1}


def test_refusals_and_expiries(engine: Engine, telemetry: Telemetry) -> None:
    claim = engine.claim("a")
    barred = (Reason("run_tag:day=*:1", 1, 1, 1), Reason("pool:a", 1, 1, 1))
    engine.hook.penstock_refused(claim=claim, reasons=barred, why="skipped", waited_seconds=0.5)
    engine.hook.penstock_refused(claim=claim, reasons=(), why="withdrawn", waited_seconds=1.5)
    engine.hook.penstock_expired(claim=claim, held_seconds=None, reason="its ticket ran out")
    refusals = telemetry.metrics()["penstock.claim.refusals"]
    assert refusals.unit == "{claim}"
    assert [(point.value, dict(point.attributes)) for point in refusals.data.data_points] == [
        (1, OP | {"penstock.limit": "run_tag:day=*", "penstock.outcome": "skipped"}),
        (1, OP | {"penstock.outcome": "withdrawn"}),
    ]
    outcomes = telemetry.values("penstock.claim.wait.duration", "penstock.outcome")
    assert outcomes == {"skipped": (1, 0.5), "withdrawn": (1, 1.5)}
    assert telemetry.values("penstock.claim.expiries", "penstock.claim.held") == {False: 1}
    assert [span.attributes["penstock.outcome"] for span in telemetry.spans()] == ["skipped", "withdrawn"]


def run_python(code: str, tmp_path: Path) -> str:
    code = textwrap.dedent(code).replace("STORE", f"sqlite:///{tmp_path / 'penstock.db'}")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_installed_plugin_imports_nothing_where_the_program_does_not(tmp_path: Path) -> None:
    printed = run_python(
        """
        import sys, penstock
        print(any(name.startswith("penstock_plugins") for name in sys.modules))
        with penstock.connect("STORE") as engine, engine.hold("a"):
            pass
        print("penstock_plugins.opentelemetry" in sys.modules, "opentelemetry" in sys.modules)
        """,
        tmp_path,
    )
    assert printed.split() == ["False", "True", "False"]


def test_the_installed_plugin_tells_the_global_providers_even_when_set_late(tmp_path: Path) -> None:
    printed = run_python(
        """
        import penstock
        engine = penstock.connect("STORE")
        engine.hook.penstock_engine_started(engine=engine)
        from opentelemetry import metrics, trace
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        engine.acquire(engine.claim("a")).release()
        reader = InMemoryMetricReader()
        metrics.set_meter_provider(MeterProvider([reader]))
        with engine.hold("a"):
            (resource,) = reader.get_metrics_data().resource_metrics
        print(*sorted(metric.name for scope in resource.scope_metrics for metric in scope.metrics))
        engine.close()
        """,
        tmp_path,
    )
    assert printed.split() == [
        "penstock.claim.wait.duration",
        "penstock.limit.held",
        "penstock.limit.wait.duration",
        "penstock.limit.waiting",
    ]


def test_a_reading_interval_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_OTEL_GAUGE_SECONDS", "often")
    with pytest.raises(ValueError, match="PENSTOCK_OTEL_GAUGE_SECONDS='often': seconds of at least 0"):
        OpenTelemetryPlugin()
