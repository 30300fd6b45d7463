"""`penstock.testing`, as a user loads it: in a pytest of its own, with the page's examples and some of ours."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "core" / "docs" / "testing.md"
BLOCK = re.compile(r"^```python\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OURS = """
import os
import threading

import penstock
import pytest
from penstock import connection


@pytest.mark.parametrize("turn", [1, 2])
def test_it_is_clean_in_each_test_and_leaks_are_ended(penstock_limits, turn):
    assert (penstock_limits.claims, penstock_limits.holding, penstock_limits.held("pool:a")) == ([], [], 0)
    engine = HOST.setdefault("engine", connection.connect(None, host="prefect", lazy=True))  # a host keeps its engine
    assert engine.status()["limits"] == []
    limit = turn * 2
    penstock_limits.configure(pools={"limits": {"a": limit}})
    for number in range(limit):
        engine.acquire(engine.claim("a", run_id="r", op_id=str(number)))
    with pytest.raises(penstock.Blocked):
        engine.acquire(engine.claim("a"), on_blocked="fail")
    assert penstock_limits.held("pool:a") == penstock_limits.most_at_once("pool:a") == limit
    assert len(penstock_limits.claims) == limit + 1
    assert [claim.op_id for claim in penstock_limits.holding] == [str(number) for number in range(limit)]


HOST = {}


def test_runs_and_waiters(penstock_limits):
    penstock_limits.configure(runs={"max_concurrent_runs": 1}, pools={"limits": {"a": 1}})
    engine = penstock.connect()
    begun = threading.Event()

    def run():
        with penstock.connect() as other, other.hold("a", run_id="second"):
            begun.set()

    with engine.hold("a", run_id="first"):
        thread = threading.Thread(target=run)
        thread.start()
        assert not begun.wait(0.2)
    assert begun.wait(30)
    thread.join()
    assert [claim.run_id for claim in penstock_limits.granted if claim.kind == "run"] == ["first", "second"]
    assert [claim.run_id for claim in penstock_limits.waited] == ["second"]
    assert penstock_limits.most_at_once("runs") == 1


def test_without_the_fixture_nothing_is_limited():
    with penstock.connect("postgresql://nobody@127.0.0.1:1/none") as engine, engine.hold("a:5"), engine.hold("a:5"):
        assert os.environ["PENSTOCK_STORE_URL"] == "memory://"


def test_a_wrong_block(penstock_limits):
    with pytest.raises(ValueError, match="pool"):
        penstock_limits.configure(pool={})
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's project: the files of the page."""
    for name, body in BLOCK.findall(PAGE.read_text()):
        (tmp_path / name).write_text(body)
    assert {path.name for path in tmp_path.iterdir()} == {"conftest.py", "test_reports.py"}
    return tmp_path


def run_pytest(project: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(project), *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PENSTOCK_", "PYTEST_"))}
    done = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(project.glob("*.db"))
    return done.stdout


def test_the_examples_of_the_page(project: Path) -> None:
    assert "3 passed" in run_pytest(project)


def test_what_it_promises(project: Path) -> None:
    (project / "test_ours.py").write_text(OURS)
    assert "5 passed" in run_pytest(project, "test_ours.py")


def test_the_page_names_what_the_fixture_has() -> None:
    code = "from penstock.testing import Limits; print(*(name for name in vars(Limits) if not name.startswith('_')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text = PAGE.read_text()
    for name in done.stdout.split():
        assert f"`{name}" in text, name
    assert "most_at_once" in done.stdout


def test_pytest_is_needed_by_nobody_else() -> None:
    code = (
        "import sys, penstock.connection, penstock.cli; assert not {'pytest', 'penstock.testing'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
