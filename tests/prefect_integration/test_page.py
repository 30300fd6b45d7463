"""The Prefect user's pages: commands print what stands there, code runs, settings and words are the integration's."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT, blocks, examples, plain, rewrite, shell
from pages_read import rows
from penstock.claim import Claim
from penstock.demo.prefect_host import PrefectHost
from penstock_prefect import claims
from penstock_prefect.settings import PenstockSettings
from prefect.settings import PREFECT_API_URL, temporary_settings

PAGE, COMING = "prefect_integration/README.md", "prefect_integration/coming-from-concurrency.md"
VARYING = re.compile(r"Prefect \d+\.\d+\.\d+|http://\S+")
STORE = "PREFECT_INTEGRATIONS_PENSTOCK_STORE_URL"


def test_every_command_prints_what_the_page_shows(host: PrefectHost, tmp_path: Path) -> None:
    """With PENSTOCK_TEST_REWRITE_PAGES=1 the page is written anew from what they print."""
    (tmp_path / "nightly.py").write_text(blocks(PAGE, "python")[0])
    with shell(tmp_path) as terminal:
        url = f"sqlite:///{tmp_path}/penstock.db"
        terminal.environment |= {
            "PREFECT_API_URL": host.api_url,
            "PENSTOCK_STORE_URL": url,
            STORE: url,
            "NO_COLOR": "1",
        }
        shown = [(example, terminal.run(example.command)) for example in examples(PAGE)]
    if os.environ.get("PENSTOCK_TEST_REWRITE_PAGES"):
        rewrite(PAGE, shown)
    for example, output in shown:
        assert _plain(output) == _plain(example.output), example.command


def _plain(lines: list[str]) -> list[str]:
    return plain([VARYING.sub("WHICH", line) for line in lines])


def test_the_code_runs(host: PrefectHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STORE, f"sqlite:///{tmp_path}/penstock.db")
    monkeypatch.setattr("penstock_prefect.PenstockStore.save", lambda *_, **__: None)
    found: list[dict[str, Any]] = []
    with temporary_settings({PREFECT_API_URL: host.api_url}):
        for page in (PAGE, COMING):
            for number, block in enumerate(blocks(page, "python")):
                namespace: dict[str, Any] = {"__name__": "page"}
                exec(compile(block, f"{page} {number}", "exec"), namespace)
                found.append(namespace)
    (reports,) = (each["reports"] for each in found if "reports" in each)
    (after,) = (each for each in found if "limited" in each and "load" in each and "reports" not in each)
    assert claims.Limits(pools={"database": 2}, wait_timeout_seconds=60) == after["load"].fn.__penstock_limits__
    assert reports.fn.__penstock_limits__.within == {"max_concurrent": 4}
    assert any("OurWorker" in each for each in found)


def test_the_commands_in_shell_blocks_exist() -> None:
    """They need a machine of their own; that they are spelled as they are taken is seen here."""
    lines = [line for page in (PAGE, COMING) for block in blocks(page, "sh") for line in block.splitlines()]
    assert {line.split()[0] for line in lines} == {"pip", "prefect", "penstock"}
    settings = {word for line in lines for word in re.findall(r"PREFECT_INTEGRATIONS_PENSTOCK_(\w+)=", line)}
    assert {name.lower() for name in settings} <= set(PenstockSettings.model_fields)


def test_the_settings_are_the_integrations() -> None:
    assert rows(ROOT / PAGE, "## Settings") == [
        [f"`{name}`", f"`{field.default}`" if field.default is not None else "—", field.description]
        for name, field in PenstockSettings.model_fields.items()
    ]


def test_the_tags_are_those_of_the_claims() -> None:
    run = claims.FlowFacts(
        flow_run_id="1", flow_name="f", deployment_name="d", work_pool_name="w", scheduled=True, tags=frozenset({"a:b"})
    )
    op = claims.TaskFacts(task_run_id="2", task_name="t")
    implicit = (claims.run_tags(run)[0].keys() - {"a"}) | claims.op_tags(op)[0].keys()
    assert {row[0].strip("`") for row in rows(ROOT / PAGE, "## Tags")[1:]} == implicit
    assert Claim


def test_what_the_troubleshooting_quotes_is_said() -> None:
    code = "\n".join(
        path.read_text()
        for folder in ("core/penstock", "prefect_integration")
        for path in (ROOT / folder).rglob("*.py")
    )
    told = " ".join(code.replace('"\n', "").replace('"', "").split())
    for first, *_ in rows(ROOT / PAGE, "## Troubleshooting"):
        for quoted in re.findall(r"`([A-Zt][^`…]+ [^`…]+)", first):
            assert quoted.strip() in told, quoted
