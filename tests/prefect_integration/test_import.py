"""`penstock import prefect-limits` on the limits of a real server, as its API and as its own commands tell them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import penstock
from penstock.demo.prefect_host import PrefectHost

MAKE = """
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate as Limit, WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyOptions
with get_client(sync_client=True) as client:
    for limit in (
        Limit(name="import-database", limit=3),
        Limit(name="import-rate", limit=10, slot_decay_per_second=2),
        Limit(name="import-off", limit=2, active=False),
    ):
        client.create_global_concurrency_limit(limit)
    client.create_concurrency_limit(tag="import:warehouse", concurrency_limit=4)
    client.create_work_pool(WorkPoolCreate(name="import-pool", type="process", concurrency_limit=5))
    client.create_deployment(
        client.create_flow_from_name("import-flow"),
        name="import-nightly",
        concurrency_limit=3,
        concurrency_options=ConcurrencyOptions(collision_strategy="CANCEL_NEW"),
    )
"""
TAKEN = {"import-database": 3, "tag:import:warehouse": 4}


def test_limits_come_from_the_api_and_from_files(host: PrefectHost, tmp_path: Path) -> None:
    host.run_python("-c", MAKE)
    told = imported(tmp_path / "api.db", "--api-url", host.api_url)
    for note in (
        "no counterpart: import-rate: its slots come back at 2 a second",
        "no counterpart: import-off: it is not active",
        'tag:import:warehouse: no tag takes slots of a pool here; put @limited("tag:import:warehouse") above the tasks',
        "no counterpart: deployment import-nightly: it bounds runs, and Prefect goes on counting; to share it put the "
        'flows under @limited and add {"key": "prefect/deployment", "value": "import-nightly", "limit": 3}',
        'deployment import-nightly: for CANCEL_NEW write @limited(on_blocked="skip")',
        "no counterpart: work pool import-pool: it bounds runs, and Prefect goes on counting; to share it put the "
        'flows under @limited and add {"key": "prefect/work_pool", "value": "import-pool", "limit": 5}',
    ):
        assert f"{host.api_url}: {note}" in told

    for command, kept in (
        (("gcl", "ls", "-o", "json"), TAKEN),
        (("concurrency-limit", "ls", "-o", "json"), {"tag:import:warehouse": 4}),
    ):
        file = tmp_path / f"{command[0]}.json"
        file.write_text(host.run_prefect(*command))
        imported(tmp_path / f"{command[0]}.db", str(file), taken=kept)


def imported(store: Path, *arguments: str, taken: dict[str, int] = TAKEN) -> str:
    """What the command says; the pools that it made are those expected."""
    url = f"sqlite:///{store}"
    penstock_command = Path(sys.executable).with_name("penstock")
    done = subprocess.run(
        [penstock_command, "--store", url, "import", "prefect-limits", *arguments, "--yes"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with penstock.connect(url) as engine:
        limits = engine.configuration(fresh=True)[1].pools.limits
    assert {name: pool.limit for name, pool in limits.items()} == taken
    return done.stderr
