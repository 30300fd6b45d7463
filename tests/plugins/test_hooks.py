"""Every hook: documented, of one kind, called when its page says, and harmless or loud as its kind promises."""

from __future__ import annotations

import inspect
import logging
import threading
from dataclasses import replace
from typing import Any

import click
import pytest
from configuring import configure
from penstock import changes, hookspecs
from penstock.claim import Claim
from penstock.config import Concurrency, PoolLimit
from penstock.decision import Granted
from penstock.engine import Engine
from penstock.errors import Blocked, ConfigError, Fault, ImpossibleClaim, PluginError, Skipped, WaitTimeout
from penstock.hooks import Plugins, plugin_manager
from penstock.hookspecs import CHANGES, OBSERVERS, QUESTIONS, TASKS, ImportedConfiguration, hookimpl
from penstock.rules import Demand, resolve_limit
from penstock.settings import Settings
from penstock.waiting import Cancelled

SPECS = {name: spec for name, spec in vars(hookspecs).items() if name.startswith("penstock_")}


def failing(hook_name: str, error: Exception | None = None) -> object:
    """A plugin whose one hook raises."""

    def hook(self: object) -> None:
        raise error or RuntimeError("the plugin is broken")

    return type("Broken", (), {hook_name: hookimpl(hook)})()


def returning(hook_name: str, value: Any) -> object:
    """A plugin whose one hook returns this."""
    return type("Returning", (), {hook_name: hookimpl(lambda self: value)})()


class Recorder:
    """Observes everything that an engine tells."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    @hookimpl
    def penstock_waiting(self, claim: Claim, waiting: Any) -> None:
        self.seen.append(("waiting", claim.label, [reason.limit for reason in waiting.reasons]))

    @hookimpl
    def penstock_granted(self, lease: Any, waited_seconds: float) -> None:
        self.seen.append(("granted", lease.claim.label, waited_seconds >= 0))

    @hookimpl
    def penstock_released(self, lease: Any, held_seconds: float) -> None:
        self.seen.append(("released", lease.claim.label, held_seconds >= 0))

    @hookimpl
    def penstock_lost(self, lease: Any) -> None:
        self.seen.append(("lost", lease.claim.label))

    @hookimpl
    def penstock_limit_changed(self, key: str, capacity: int | None) -> None:
        self.seen.append(("limit_changed", key, capacity))


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


# -- all of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECS)
def test_every_hook_says_when_from_where_and_what_of_errors(name: str) -> None:
    text = " ".join(inspect.getdoc(SPECS[name]).split())
    assert "Called" in text
    assert "thread" in text
    assert "rror" in text


@pytest.mark.parametrize("name", SPECS)
def test_every_hook_has_a_test(name: str) -> None:
    tests = [test for test in globals() if test.startswith(f"test_{name.removeprefix('penstock_')}")]
    assert tests, f"write test_{name.removeprefix('penstock_')}…"


def test_every_hook_is_of_one_kind() -> None:
    assert sorted([*OBSERVERS, *CHANGES, *QUESTIONS, *TASKS]) == sorted(SPECS)
    first = {name for name, spec in SPECS.items() if spec.penstock_spec["firstresult"]}
    assert first == QUESTIONS | TASKS


@pytest.mark.parametrize("name", sorted(OBSERVERS))
def test_an_observer_that_raises_is_logged_and_the_others_still_hear(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = list(inspect.signature(SPECS[name]).parameters)
    heard: list[str] = []
    hearing = type("Hearing", (), {name: hookimpl(lambda self: heard.append(name))})
    # The broken one is called between the two.
    manager = plugin_manager(hearing(), failing(name), type("Other", (hearing,), {})())
    quiet = {"lease": None, "claim": None, "engine": None, "reasons": (), "group": click.Group(), "capacity": None}
    for plugin in ("logging", "opentelemetry"):  # they would look into what is none here
        manager.set_blocked(plugin)
    with caplog.at_level(logging.ERROR, "penstock.plugins"):
        getattr(manager.hook, name)(**{argument: quiet.get(argument) for argument in arguments})
    assert heard == [name, name]
    (record,) = [record for record in caplog.records if record.name == "penstock.plugins"]
    assert f"plugin 'Broken' failed in {name}" in record.getMessage()
    assert record.exc_info is not None


def test_what_a_signal_raises_passes_through_an_observer() -> None:
    """Hosts stop a task by an exception raised into its main thread: no plugin's guard may swallow that."""

    def stopped(self: object) -> None:
        raise KeyboardInterrupt

    manager = plugin_manager(type("Stopped", (), {"penstock_limit_changed": hookimpl(stopped)})())
    with pytest.raises(KeyboardInterrupt):
        manager.hook.penstock_limit_changed(key="pool:a", capacity=1)


def test_trylast_answers_only_when_nobody_else_does() -> None:
    class BuiltIn:
        @hookimpl(trylast=True)
        def penstock_holder_url(self) -> str:
            return "https://built-in.example"

    claim = Claim(kind="op", host="process", deployment="process")
    alone, overridden = plugin_manager(BuiltIn()), Plugins()
    overridden.register(returning("penstock_holder_url", "https://own.example"))
    overridden.register(BuiltIn())
    assert alone.hook.penstock_holder_url(claim=claim) == "https://built-in.example"
    assert overridden.hook.penstock_holder_url(claim=claim) == "https://own.example"


# -- changing a claim -----------------------------------------------------------------------------------------------


def test_enrich_claim_each_plugin_is_given_what_the_one_before_returned(new_engine: Any) -> None:
    class Pool:
        def __init__(self, name: str) -> None:
            self.name = name

        @hookimpl
        def penstock_enrich_claim(self, claim: Claim) -> Claim:
            return replace(claim, pools={**claim.pools, self.name: 1})

    engine = new_engine(Pool("b"), Pool("c"), returning("penstock_enrich_claim", None))
    with engine.hold("a") as lease:
        assert set(lease.fences) == {"pool:a", "pool:b", "pool:c"}


@pytest.mark.parametrize(
    ("plugin", "text"),
    [
        (failing("penstock_enrich_claim"), "plugin 'Broken' failed in penstock_enrich_claim: RuntimeError: the plugin"),
        (returning("penstock_enrich_claim", "x"), "it returned 'x'; a Claim or None is expected"),
        (
            returning("penstock_enrich_claim", Claim(kind="op", host="process", deployment="process")),
            "changed who holds",
        ),
    ],
)
def test_enrich_claim_that_fails_is_the_claims_error_and_nothing_is_held(
    new_engine: Any, plugin: object, text: str
) -> None:
    engine = new_engine(plugin)
    with pytest.raises(PluginError, match=text) as raised:
        engine.acquire(engine.claim("a"))
    assert "PENSTOCK_PLUGINS_DISABLED=" in str(raised.value)
    assert engine.status()["leases"] == []


def test_adjust_demands_adds_up_over_plugins(new_engine: Any) -> None:
    class Demands:
        def __init__(self, key: str) -> None:
            self.key = key

        @hookimpl
        def penstock_adjust_demands(self, demands: Any, concurrency: Concurrency) -> list[Demand]:
            return [*demands, Demand(self.key, 1, *resolve_limit(self.key, concurrency))]

    engine = new_engine(Demands("pool:b"), Demands("pool:c"))
    configure(engine, pools={"default_limit": 1})
    with engine.hold("a") as lease:
        assert set(lease.fences) == {"pool:a", "pool:b", "pool:c"}
        assert {row["key"]: row["capacity"] for row in engine.status()["limits"]}["pool:c"] == 1


DEMAND = Demand("pool:b", 1, *resolve_limit("pool:b", Concurrency()))


@pytest.mark.parametrize(
    ("plugin", "text"),
    [
        (failing("penstock_adjust_demands"), "plugin 'Broken' failed in penstock_adjust_demands: RuntimeError"),
        (returning("penstock_adjust_demands", "pool:b"), "a sequence of Demand or None is expected"),
        (returning("penstock_adjust_demands", [DEMAND, DEMAND]), "demands pool:b twice"),
        (returning("penstock_adjust_demands", [replace(DEMAND, key="rooms:b")]), "'rooms' is not a valid LimitKind"),
    ],
)
def test_adjust_demands_that_fails_is_the_claims_error_and_nothing_is_held(
    new_engine: Any, plugin: object, text: str
) -> None:
    engine = new_engine(plugin)
    with pytest.raises(PluginError, match=text):
        engine.acquire(engine.claim("a"))
    assert engine.status()["leases"] == engine.status()["waiters"] == []


# -- observing ------------------------------------------------------------------------------------------------------


def test_granted_waiting_and_released_are_told_once_each(new_engine: Any, recorder: Recorder) -> None:
    engine = new_engine(recorder)
    configure(engine, pools={"limits": {"a": 1}})
    recorder.seen.clear()
    with engine.hold("a", op_id="first"), pytest.raises(WaitTimeout):
        engine.acquire(engine.claim("a", op_id="second"), wait_timeout_seconds=0.1)
    assert recorder.seen == [
        ("granted", "process/process first", True),
        ("waiting", "process/process second", ["pool:a"]),
        ("released", "process/process first", True),
    ]


@pytest.mark.parametrize("name", ["penstock_granted", "penstock_waiting", "penstock_released"])
def test_granted_waiting_released_observers_that_raise_lose_no_claim(
    new_engine: Any, recorder: Recorder, name: str
) -> None:
    engine = new_engine(recorder, failing(name))
    configure(engine, pools={"limits": {"a": 1}})
    with engine.hold("a"), pytest.raises(WaitTimeout):
        engine.acquire(engine.claim("a"), wait_timeout_seconds=0.1)
    assert [what for what, *_ in recorder.seen] == ["limit_changed", "granted", "waiting", "released"]
    assert isinstance(engine.try_acquire(engine.claim("a")), Granted)


def test_waiting_is_told(new_engine: Any, recorder: Recorder) -> None:
    engine = new_engine(recorder)
    configure(engine, pools={"limits": {"a": 0}})
    with pytest.raises(WaitTimeout):
        engine.acquire(engine.claim("a", op_id="o"), wait_timeout_seconds=0.1)
    assert recorder.seen[-1] == ("waiting", "process/process o", ["pool:a"])


def test_released_is_told_when_the_slots_are_free(new_engine: Any) -> None:
    held_then: list[int] = []

    class Looking:
        @hookimpl
        def penstock_released(self) -> None:
            held_then.append(len(engine.status()["leases"]))

    engine = new_engine(Looking())
    with engine.hold("a"):
        pass
    assert held_then == [0]


def test_lost_is_told_by_the_engine_even_beside_a_broken_plugin(new_engine: Any, recorder: Recorder) -> None:
    engine = new_engine(recorder, failing("penstock_lost"))
    lease = engine.acquire(engine.claim("a", op_id="o"))
    engine.session_is_gone(lease.session_id)
    assert recorder.seen[-1] == ("lost", "process/process o")
    assert lease.lost


def test_limit_changed_is_told(new_engine: Any, recorder: Recorder) -> None:
    engine = new_engine(recorder)
    changes.set_pool(engine, "a", PoolLimit(limit=3))
    changes.set_pool(engine, "a", None)
    assert recorder.seen == [("limit_changed", "pool:a", 3), ("limit_changed", "pool:a", None)]


class Called:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    @hookimpl
    def penstock_engine_started(self, engine: Engine) -> None:
        self.calls.append({"started": engine})

    @hookimpl
    def penstock_engine_closed(self, engine: Engine) -> None:
        self.calls.append({"closed": engine})

    @hookimpl
    def penstock_refused(self, claim: Claim, reasons: Any, why: str, waited_seconds: float) -> None:
        self.calls.append({"claim": claim, "reasons": reasons, "why": why, "waited_seconds": waited_seconds})

    @hookimpl
    def penstock_expired(self, claim: Claim, held_seconds: float | None, reason: str) -> None:
        self.calls.append({"claim": claim, "held_seconds": held_seconds, "reason": reason})


def test_engine_started_is_told_before_the_first_claim(new_engine: Any) -> None:
    called = Called()
    engine = new_engine(called)
    assert called.calls == [{"started": engine}]
    with engine.hold("a"):
        pass
    assert len(called.calls) == 1


def test_engine_closed_is_told_once(new_engine: Any) -> None:
    called = Called()
    engine = new_engine(called)
    with engine:
        assert len(called.calls) == 1
    engine.close()
    assert called.calls[1:] == [{"closed": engine}]


def test_refused_says_why_and_by_what(new_engine: Any) -> None:
    called = Called()
    engine = new_engine(called)
    configure(engine, pools={"limits": {"a": 1}})
    stop = threading.Event()
    stop.set()
    ways: list[tuple[str, list[str], type[Exception], str, dict[str, Any]]] = [
        ("impossible", ["pool:a"], ImpossibleClaim, "a:2", {}),
        ("blocked", ["pool:a"], Blocked, "a", {"on_blocked": "fail"}),
        ("skipped", ["pool:a"], Skipped, "a", {"on_blocked": "skip"}),
        ("timed_out", ["pool:a"], WaitTimeout, "a", {"wait_timeout_seconds": 0.05}),
        ("withdrawn", [], Cancelled, "a", {"cancelled": stop}),
    ]
    with engine.hold("a"):
        for why, limits, error, pool, how in ways:
            claim = engine.claim(pool, op_id=why)
            with pytest.raises(error):
                engine.acquire(claim, **how)
            told = called.calls[-1]
            assert (told["claim"], told["why"], [reason.limit for reason in told["reasons"]]) == (claim, why, limits)
            assert told["waited_seconds"] >= (0.05 if why == "timed_out" else 0.0)
    assert len(called.calls) == 1 + len(ways)


def test_expired_is_told_by_the_process_that_sweeps(store: Any, new_engine: Any) -> None:
    called = Called()
    dead, other = new_engine(), new_engine(called, settings=Settings(sweep_seconds=0, session_ttl_seconds=10**6))
    held, waiting = dead.claim("a", op_id="held"), dead.claim("a", op_id="waits")
    configure(other, pools={"limits": {"a": 1}})
    dead.acquire(held)
    dead.request(waiting).step()
    dead._session._stop.set()  # it beats no more
    store.clock_shift += 40_000_000
    other.janitor.sweep_if_due()
    told = {call["claim"].claim_id: call for call in called.calls if "reason" in call}
    assert told.keys() == {held.claim_id, waiting.claim_id}
    assert told[held.claim_id]["held_seconds"] >= 40
    assert told[waiting.claim_id]["held_seconds"] is None
    assert all(call["reason"] for call in told.values())


# -- questions, tasks, commands -------------------------------------------------------------------------------------


def test_holder_alive_false_ends_a_probed_run_and_an_error_tells_nothing(new_engine: Any) -> None:
    engine = new_engine(failing("penstock_holder_alive"))
    engine.request(engine.run_claim("r"), probed=True).step()
    assert engine.janitor.probe() == 0
    other = new_engine(returning("penstock_holder_alive", False), failing("penstock_holder_alive"))
    assert other.janitor.probe() == 1
    assert engine.status()["leases"] == []


def test_holder_url_first_answer_counts_and_an_error_is_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    manager = plugin_manager(
        returning("penstock_holder_url", "https://host.example/1"),
        returning("penstock_holder_url", None),
        failing("penstock_holder_url"),
    )
    claim = Claim(kind="op", host="process", deployment="process")
    assert manager.hook.penstock_holder_url(claim=claim) == "https://host.example/1"
    assert "plugin 'Broken' failed in penstock_holder_url" in caplog.text


def test_holder_url_is_kept_by_the_store_for_those_who_look(new_engine: Any) -> None:
    class Host:
        @hookimpl
        def penstock_holder_url(self, claim: Claim) -> str | None:
            return f"https://host.example/{claim.op_id}" if claim.op_id else None

    engine = new_engine(Host(), failing("penstock_holder_url"))
    with engine.hold("a", op_id="1"), engine.acquire(engine.claim("a", op_id="2", url="https://own.example")):
        with engine.hold("a") as unknown:
            assert unknown.claim.url is None
        assert {row["op_id"]: row["url"] for row in engine.status()["leases"]} == {
            "1": "https://host.example/1",
            "2": "https://own.example",
        }


def test_import_configuration_first_result_counts() -> None:
    class Importer:
        @hookimpl
        def penstock_import_configuration(self, kind: str, source: str) -> ImportedConfiguration | None:
            if kind != "rooms":
                return None
            return ImportedConfiguration({"pools": {"limits": {source: 2}}}, ("Room doors have no counterpart.",))

    hook = plugin_manager(Importer()).hook
    imported = hook.penstock_import_configuration(kind="rooms", source="lab", options={})
    assert Concurrency.model_validate(imported.concurrency).pools.limits["lab"].limit == 2
    assert imported.notes == ("Room doors have no counterpart.",)
    assert hook.penstock_import_configuration(kind="halls", source="lab", options={}) is None


def test_import_configuration_errors_are_the_callers() -> None:
    name = "penstock_import_configuration"
    fault = ConfigError([Fault("no such pool", line=3)])
    with pytest.raises(ConfigError) as raised:
        plugin_manager(failing(name, fault)).hook.penstock_import_configuration(kind="k", source="s", options={})
    assert raised.value is fault
    with pytest.raises(PluginError, match="plugin 'Broken' failed in penstock_import_configuration: RuntimeError"):
        plugin_manager(failing(name)).hook.penstock_import_configuration(kind="k", source="s", options={})


def test_add_command() -> None:
    class Command:
        @hookimpl
        def penstock_add_command(self, group: click.Group) -> None:
            group.add_command(click.Command("rooms"))

    group = click.Group()
    plugin_manager(Command(), failing("penstock_add_command")).hook.penstock_add_command(group=group)
    assert list(group.commands) == ["rooms"]
