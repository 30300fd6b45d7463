"""The store's URL in a block of Prefect: made by its commands, read once in a process, never missing in silence."""

from __future__ import annotations

import json
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from penstock.demo.prefect_host import PrefectHost
from penstock.engine import Engine
from penstock.errors import ConfigError, StoreUnavailable
from penstock_prefect import PenstockStore, blocks, installation, settings

SCRIPT = Path(__file__).parent / "flows" / "scripts.py"
SETTING = blocks.SETTING


@pytest.fixture(autouse=True)
def forgotten() -> None:
    settings._read_block.cache_clear()


def save(host: PrefectHost, name: str, url: str) -> None:
    host.run_python(
        "-c", f"from penstock_prefect import PenstockStore as S; S(url={url!r}).save({name!r}, overwrite=True)"
    )


def test_flows_find_their_store_by_a_block(
    host: PrefectHost, tmp_path: Path, engine: Engine, configure: Callable[..., None]
) -> None:
    """Registered by the command, and asked for once though eight tasks of the flow claim at the same time."""
    configure(pools={"limits": {"database": 2}})
    said = host.run_prefect("block", "register", "-m", "penstock_prefect")
    assert "Penstock Store" in said
    save(host, "limits", host.store_url or "")
    block = {"PREFECT_INTEGRATIONS_PENSTOCK_STORE_URL": "", SETTING: "limits"}
    child = host.run_flow("by-block", SCRIPT, "shared", str(tmp_path / "intervals"), "by-block", settings=block)
    assert host.wait_for_flows(child, seconds=90) == [0]
    granted = [row for row in engine.store.history() if row.event == "granted"]
    assert [row.slots for row in granted[-6:]] == [{"pool:database": 1}] * 6


def test_a_block_that_is_missing_fails_the_run(host: PrefectHost, tmp_path: Path) -> None:
    block = {"PREFECT_INTEGRATIONS_PENSTOCK_STORE_URL": "", SETTING: "nowhere"}
    child = host.run_flow("no-block", SCRIPT, "shared", str(tmp_path / "intervals"), "no-block", settings=block)
    assert host.wait_for_flows(child, seconds=90) != [0]
    assert not (tmp_path / "intervals").exists()
    assert "Prefect has no block penstock-store/nowhere; make it, or set store_url" in host.flow_log("no-block")


def test_many_threads_ask_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str, **_: object) -> PenstockStore:
        asked.append(name)
        return PenstockStore(url="sqlite:////srv/penstock.db")

    monkeypatch.setattr(PenstockStore, "load", load)
    monkeypatch.setenv(SETTING, "limits")
    found = []
    threads = [threading.Thread(target=lambda: found.append(installation.engine())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked == ["limits"]
    assert len(set(map(id, found))) == 1


def test_the_url_comes_before_the_block_and_the_block_before_the_common_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PenstockStore, "load", lambda name, **_: PenstockStore(url="sqlite:///block.db"))
    monkeypatch.setenv("PENSTOCK_STORE_URL", "sqlite:///common.db")
    assert settings.PenstockSettings().configured_store_url == "sqlite:///common.db"
    monkeypatch.setenv(SETTING, "limits")
    assert settings.PenstockSettings().configured_store_url == "sqlite:///block.db"
    monkeypatch.setenv("PREFECT_INTEGRATIONS_PENSTOCK_STORE_URL", "sqlite:///url.db")
    assert settings.PenstockSettings().configured_store_url == "sqlite:///url.db"


def test_what_is_wrong_is_told_without_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(load: Callable[..., object]) -> str:
        monkeypatch.setattr(PenstockStore, "load", load)
        with pytest.raises((ConfigError, StoreUnavailable)) as raised:
            blocks.store_url("limits")
        assert "secret" not in str(raised.value)
        assert raised.value.__cause__ is None
        return f"{type(raised.value).__name__}: {raised.value}"

    def away(*_: object, **__: object) -> object:
        raise OSError("http://user:secret@api.example refused")

    wrong = f"ConfigError: {SETTING}: the block 'limits' "
    assert told(lambda *_, **__: PenstockStore(url=["secret"])) == (
        f"{wrong}holds no store URL; save it again as a PenstockStore"
    )
    assert told(lambda *_, **__: PenstockStore(url=" ")).startswith(f"{wrong}holds an empty URL")
    assert told(away) == "StoreUnavailable: Prefect's API does not tell its block 'limits' now (OSError)"


def test_no_part_of_the_url_is_shown() -> None:
    block = PenstockStore(url="postgresql://penstock:secret@db.example/penstock")
    assert "secret" not in f"{block!r} {block} {json.dumps(block.model_dump(mode='json'))}"


@pytest.mark.parametrize("query", ["", "?sslmode=verify-full&sslrootcert=/nowhere", "?password=s3cr%2Ft"])
def test_a_store_that_is_away_is_told_without_the_password(
    query: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    user = "me" if "password" in query else "me:s3cr%2Ft"
    url = f"postgresql://{user}@127.0.0.1:1/limits{query}"
    monkeypatch.setattr(PenstockStore, "load", lambda name, **_: PenstockStore(url=url))
    monkeypatch.setenv(SETTING, "limits")
    caplog.set_level("DEBUG")
    with pytest.raises(StoreUnavailable) as away:
        installation.engine().store.check_schema()
    told = "".join(traceback.format_exception(away.value))
    for text in (told, caplog.text, repr(settings.PenstockSettings())):
        assert "s3cr" not in text
