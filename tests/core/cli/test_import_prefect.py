"""`penstock import prefect-limits`: where the limits come from; what becomes of them is in tests/plugins."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from situations import CALM, NewEngine

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
pytestmark = pytest.mark.parametrize("store_kind", ["sqlite"], indirect=True)
ROWS = [{"name": "database", "limit": 3, "slot_decay_per_second": 0.0}, {"tag": "db", "concurrency_limit": 2}]
AWAY = "http://127.0.0.1:1/api"


@pytest.fixture(autouse=True)
def no_api(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


def test_a_file_sets_the_pools(
    cli: Cli, new_engine: NewEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine(settings=CALM)
    file = tmp_path / "limits.json"
    file.write_text(json.dumps(ROWS))
    monkeypatch.setenv("PREFECT_API_URL", AWAY)  # of somebody who has it set anyway: the file counts
    assert cli("import", "prefect-limits", str(file)).returncode == 2  # nobody to ask
    done = cli("import", "prefect-limits", str(file), "--yes")
    assert done.returncode == 0, done.stderr
    assert f'{file}: tag:db: no tag takes slots of a pool here; put @limited("tag:db") above the tasks' in done.stderr
    assert done.stdout.endswith("imported as version 1\n")
    found = engine.configuration(fresh=True)[1].pools.limits
    assert {name: pool.limit for name, pool in found.items()} == {"database": 3, "tag:db": 2}
    assert cli("import", "prefect-limits", str(file)).stdout == "nothing to change\n"


def test_the_api_is_the_one_given_or_prefects_own(
    cli: Cli, new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = cli("import", "prefect-limits", "--api-url", AWAY)
    assert (done.returncode, "cannot be asked" in done.stderr) == (1, True)
    monkeypatch.setenv("PREFECT_API_URL", AWAY)
    done = cli("import", "prefect-limits")
    assert (done.returncode, f"{AWAY}: cannot be asked" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name a FILE, or set --api-url or PREFECT_API_URL"),
        (("limits.json", "--api-url", AWAY), "FILE or --api-url, not both"),
        (("--api-url", "127.0.0.1:4200/api"), "begins with http:// or https://"),
        (("--api-url", "http://admin:secret@127.0.0.1/api"), "belong into PREFECT_API_AUTH_STRING"),
    ],
)
def test_no_source_or_an_unusable_one(cli: Cli, new_engine: NewEngine, arguments: tuple[str, ...], said: str) -> None:
    done = cli("import", "prefect-limits", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "secret" not in done.stderr
