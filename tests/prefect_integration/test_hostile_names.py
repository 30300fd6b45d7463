"""Names that mean something to databases, terminals and templates, of all that Prefect lets people name."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from hostile import SHORT, acts, usable
from penstock.claim import encode_part, parse_tag
from penstock.demo.prefect_host import PrefectHost
from penstock.engine import Engine
from penstock.rules import pool_key
from penstock.store.contract import Event
from prefect_runs import Run, succeed

NAME = "".join(SHORT.values())


def test_names_that_mean_something_elsewhere_are_only_names(
    host: PrefectHost, engine: Engine, configure: Callable[..., None], run: Run
) -> None:
    """Each task waits for a slot that another run holds, by such a name as well."""
    keys = [key for text in SHORT.values() if (key := parse_tag(text)[0])]
    configure(
        pools={"limits": dict.fromkeys(map(usable, SHORT.values()), 1)},
        runs={"tag_concurrency_limits": [{"key": key, "limit": 5} for key in keys]},
    )
    began = engine.store.snapshot_time()
    with ExitStack() as held:
        for text in SHORT.values():
            held.enter_context(engine.acquire(engine.claim(usable(text), run_id=text, op_id=text)))
        child = run("hostile", "hostile", script="hostile_names")

        def all_say_that_they_wait() -> bool:
            return len([line for line in _said(host) if line.startswith("Waiting for slots: ")]) == len(SHORT)

        host.wait_for("all say that they wait", all_say_that_they_wait, seconds=90)
    succeed(host, child)
    granted = [row for row in engine.store.history(since=began) if row.event is Event.GRANTED]
    theirs = [row for row in granted if row.host == "prefect"]
    assert {key for row in theirs for key in row.slots} >= {pool_key(usable(text)) for text in SHORT.values()}
    assert {key for row in theirs for key in row.slots} >= {f"run_tag:{encode_part(key)}" for key in keys}
    assert all(NAME in (row.label or "") for row in theirs), "what a run is called is kept as it is"
    said = [line for line in _said(host) if line.startswith(("Waiting for slots", "Slots granted"))]
    assert len(said) >= 2 * len(SHORT)
    assert [line for line in said if "\n" in line or acts(line)] == []
    assert not engine.status()["leases"]


def _said(host: PrefectHost) -> list[str]:
    return [line for one in host.flow_runs(NAME) for line in host.run_logs(one["id"])]
