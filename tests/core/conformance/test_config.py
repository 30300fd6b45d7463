"""Dagster's configuration and its commands for limits, case by case; and what is freed by whom.

Merging the older blocks `run_queue` and `run_coordinator` into `concurrency` is the business of `penstock migrate`, and
tested with it (tests/plugins/dagster, tests/beside_dagster). What is tested here is that a penstock.yaml with them is
refused, each key named, and the commands.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import penstock
import pytest
from click.testing import CliRunner, Result
from penstock.cli import penstock as cli
from penstock.config_file import read
from penstock.engine import Engine
from penstock.errors import ConfigError
from situations import Configure, Runs, granted, held, queued

BLOCK = "concurrency:\n  runs:\n    max_concurrent_runs: 5\n"
QUEUE = "run_queue:\n  max_concurrent_runs: 7\n"
COORDINATOR = "run_coordinator:\n  module: dagster\n  class: QueuedRunCoordinator\n"
BLOCKING = "  config:\n    block_op_concurrency_limited_runs:\n      enabled: true\n"

sql_only = pytest.mark.parametrize("store_kind", ["sqlite", "postgresql", "mariadb"], indirect=True)


def _refused(text: str) -> list[tuple[int | None, str]]:
    with pytest.raises(ConfigError) as raised:
        read(text)
    return [(fault.line, f"{fault.path}: {fault.message}") for fault in raised.value.faults]


@pytest.mark.parametrize(
    ("legacy", "key"),
    [(QUEUE, "run_queue"), (COORDINATOR, "run_coordinator")],
    ids=["run_queue", "run_coordinator"],
)
def test_legacy_block_merged_with_concurrency(legacy: str, key: str) -> None:
    """Dagster merges it, and so does `migrate`. Here such a file is refused and the key named."""
    ((line, message),) = _refused(BLOCK + legacy)
    assert line == 4
    assert message == (
        f"{key}: only a `concurrency:` block is read here, this key is not part of it; "
        "`penstock migrate dagster` takes over a whole dagster.yaml"
    )


@pytest.mark.parametrize("legacy", [QUEUE, COORDINATOR], ids=["run_queue", "run_coordinator"])
def test_legacy_block_alone(legacy: str) -> None:
    ((line, message),) = _refused(legacy)
    assert line == 1
    assert "no `concurrency:` block; only that is read here, not the rest of a dagster.yaml" in message


@pytest.mark.parametrize(
    "text",
    [BLOCK + QUEUE, BLOCK + COORDINATOR + "  config: {max_concurrent_runs: 5}\n", QUEUE + COORDINATOR],
    ids=["concurrency-run_queue", "concurrency-run_coordinator", "run_queue-run_coordinator"],
)
def test_each_contradiction_an_error(text: str) -> None:
    """Both at once, alike or not, is refused; Dagster refuses the same pairs."""
    assert _refused(text)


def test_default_op_concurrency_limit_contradicts_default_limit() -> None:
    text = "concurrency:\n  default_op_concurrency_limit: 1\n  pools:\n    default_limit: 2\n"
    ((line, message),) = _refused(text)
    assert line == 2
    assert "contradicts pools.default_limit 2" in message


def test_legacy_default_op_concurrency_limit() -> None:
    found = read("concurrency:\n  default_op_concurrency_limit: 3\n")
    assert found.concurrency.pools.default_limit == 3
    assert "write pools.default_limit instead" in str(found.warnings[0])


def test_legacy_block_op_concurrency_limited_runs() -> None:
    """Dagster takes it for the gate of `pools`. `migrate` reads it; here it is refused where it stands."""
    ((line, message),) = _refused(BLOCK + COORDINATOR + BLOCKING)
    assert (line, message.partition(":")[0]) == (4, "run_coordinator")
    ((line, message),) = _refused("concurrency:\n  block_op_concurrency_limited_runs:\n    enabled: true\n")
    assert line == 2
    assert "no such key" in message


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.fixture
def command(store_url: str) -> Callable[..., Result]:
    """Run `penstock` on the store of the test."""
    penstock.connect(store_url).close()

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli, ["--store", store_url, *arguments], standalone_mode=False)

    return run


def _json(result: Result) -> Any:
    assert result.return_value in (None, 0), result.output
    return json.loads(result.stdout)


@sql_only
def test_cli_get(command: Callable[..., Result]) -> None:
    command("pools", "set", "foo", "1")
    pool = _json(command("pools", "get", "foo", "--json"))
    assert (pool["name"], pool["capacity"], pool["held"], pool["waiting"]) == ("foo", 1, 0, 0)
    assert "pool:foo " in command("pools", "get", "foo").output


@sql_only
def test_cli_list(command: Callable[..., Result]) -> None:
    """Dagster: `instance concurrency get --all`."""
    assert _json(command("pools", "list", "--json")) == []
    command("pools", "set", "foo", "1")
    command("pools", "set", "bar", "0")
    pools = _json(command("pools", "list", "--json"))
    assert [(pool["name"], pool["capacity"], pool["source"]) for pool in pools] == [
        ("bar", 0, "explicit"),
        ("foo", 1, "explicit"),
    ]


@sql_only
def test_cli_set(command: Callable[..., Result]) -> None:
    assert command("pools", "set", "foo", "1").output == "pool:foo: 1\n"
    assert command("pools", "set", "foo", "3").output == "pool:foo: 3\n"
    assert _json(command("pools", "get", "foo", "--json"))["capacity"] == 3
    for wrong in ("-1", "10001", "many"):
        assert command("pools", "set", "foo", "--", wrong).exception is not None
    assert _json(command("pools", "get", "foo", "--json"))["capacity"] == 3


@sql_only
def test_cli_unknown_pool(command: Callable[..., Result]) -> None:
    result = command("pools", "get", "nowhere")
    assert result.return_value == 1
    assert "no pool 'nowhere'; `penstock pools list` shows those there are" in result.stderr
    assert command("pools", "delete", "nowhere").return_value == 1


# -- what is freed -----------------------------------------------------------------------------------------------------


def test_free_after_the_runs_end(engine: Engine, configure: Configure) -> None:
    """Dagster frees slots of runs that are over when its daemon looks. Here the end of a run's lease is its end."""
    configure(pools={"limits": {"foo": {"limit": 1, "granularity": "run"}}}, runs={"max_concurrent_runs": 1})
    assert granted(engine.request(engine.run_claim("1", "foo"), probed=True).step())
    runs = Runs(engine)
    runs.come("2", "foo")
    assert runs.started == []
    assert engine.end_run("1")
    assert runs.started == ["2"]
    assert (held(engine, "pool:foo"), held(engine, "runs")) == (1, 1)


def test_free_by_op(engine: Engine, configure: Configure) -> None:
    configure(pools={"limits": {"foo": 2}})
    one = granted(engine.request(engine.claim("foo", run_id="r", op_id="a")).step())
    granted(engine.request(engine.claim("foo", run_id="r", op_id="b")).step())
    waiter = queued(engine, "foo", run_id="r", op_id="c")
    assert engine.store.end(one.claim_id, reason="freed by hand")
    assert granted(waiter.step())
    assert not engine.store.end(one.claim_id, reason="freed by hand")
    assert {row.claim.op_id for row in engine.snapshot().claims} == {"b", "c"}


def test_free_by_run(engine: Engine, configure: Configure) -> None:
    """The run's lease goes with its late pools; its ops' leases are ended one by one."""
    configure(pools={"limits": {"late": {"limit": 1, "granularity": "run"}, "foo": 1}})
    run = granted(engine.request(engine.run_claim("r")).step())
    granted(engine.request(engine.claim("late", "foo", run_id="r", op_id="a", in_run=True)).step())
    assert (held(engine, "pool:late"), held(engine, "pool:foo")) == (1, 1)
    assert engine.store.end(run.claim_id, reason="freed by hand")
    assert (held(engine, "pool:late"), held(engine, "pool:foo")) == (0, 1)
    for row in engine.snapshot().claims:
        assert engine.store.end(row.claim.claim_id, reason="freed by hand")
    assert held(engine, "pool:foo") == held(engine, "runs") == 0
