"""A stranger's plugin: a package of its own, built to a wheel, installed beside Penstock, met by real processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import penstock
import pytest
from configuring import configure
from penstock.store.contract import Event

PACKAGE = Path(__file__).parent / "third_party"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the module path that has the built package in it, metadata and all, as an installer leaves it."""
    folder = tmp_path_factory.mktemp("third_party")
    shutil.copytree(PACKAGE, folder / "source")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=folder / "source", check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("penstock_rooms-1.0-*.whl")
    site = folder / "site"
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)
    assert {path.name for path in site.iterdir()} == {"penstock_rooms", "penstock_rooms-1.0.dist-info"}
    return site


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    """A store on which each room has one seat unless it says otherwise."""
    url = f"sqlite:///{tmp_path / 'penstock.db'}"
    with penstock.connect(url) as engine:
        configure(engine, pools={"default_limit": 1, "limits": {"a": 5, "room/hall": 3}})
    return url


@pytest.fixture
def run(installed: Path, store_url: str, tmp_path: Path) -> Run:
    """`penstock` with the plugin installed, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(installed), "ROOMS_BOOK": str(tmp_path / "book")}

    def penstock_command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "penstock", "--store", store_url, *arguments]
        return subprocess.run(
            command, env=environment | variables, capture_output=True, text=True, timeout=60, check=False
        )

    return penstock_command


def test_it_changes_claims_and_demands_and_hears_of_grants(run: Run, store_url: str, tmp_path: Path) -> None:
    inside = f"{sys.executable} -m penstock --store {store_url} status --json"
    done = run("run", "--pool", "a", "--tag", "room=lab", "--", "sh", "-c", inside)
    assert done.returncode == 0, done.stderr
    assert '"limit": "pool:room/lab"' in done.stdout
    assert '"url": "https://rooms.example/lab"' in done.stdout
    assert run("run", "--pool", "a", "--", "true").returncode == 0
    assert [line.split()[0] for line in (tmp_path / "book").read_text().splitlines()] == ["lab", "hall"]
    with penstock.connect(store_url) as engine:
        granted = [dict(row.slots) for row in engine.store.history() if row.event is Event.GRANTED]
    assert granted == [{"pool:a": 1, "pool:room/lab": 1}, {"pool:a": 1, "pool:room/hall": 1}]


def test_what_it_demands_is_a_limit_as_any_other(run: Run, store_url: str) -> None:
    with penstock.connect(store_url) as engine, engine.hold("room/lab"):
        done = run("run", "--tag", "room=lab", "--on-blocked", "fail", "--", "true")
        assert done.returncode == 75
        assert "room/lab: 1 of 1 held" in done.stderr


def test_it_adds_a_command(run: Run, store_url: str) -> None:
    assert "The rooms and their seats." in run("--help").stdout
    with penstock.connect(store_url) as engine, engine.hold("room/hall:2"):
        done = run("rooms")
    assert (done.returncode, done.stdout) == (0, "hall: 2 of 3\n"), done.stderr


def test_it_is_left_out_by_its_name(run: Run, store_url: str, tmp_path: Path) -> None:
    left_out = {"PENSTOCK_PLUGINS_DISABLED": "rooms"}
    assert run("rooms", **left_out).returncode == 2
    assert "rooms" not in run("--help", **left_out).stdout
    assert run("run", "--pool", "a", "--", "true", **left_out).returncode == 0
    assert not (tmp_path / "book").exists()
    with penstock.connect(store_url) as engine:
        assert dict(engine.store.history()[-1].slots) == {"pool:a": 1}


def test_an_error_where_a_claim_depends_on_it_ends_the_claim_and_elsewhere_is_logged(run: Run) -> None:
    done = run("run", "--tag", "room=a b", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (1, "")
    assert "plugin 'rooms' failed in penstock_adjust_demands: ClaimError: pool name 'room/a b'" in done.stderr
    assert "set PENSTOCK_PLUGINS_DISABLED=rooms to do without it" in done.stderr
    done = run("run", "--tag", "room=lab", "--", "echo", "ran", ROOMS_BOOK="/nowhere/book")
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert "plugin 'rooms' failed in penstock_granted; the others are called all the same" in done.stderr
