"""Plugins by entry point: found, left out by name, and an error when they cannot be used."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from penstock.errors import PluginError
from penstock.hooks import DISABLED_VARIABLE, disabled_plugins, plugin_manager
from penstock.hookspecs import hookimpl

GOOD = """
from penstock.hookspecs import hookimpl

@hookimpl
def penstock_holder_url(claim):
    return "https://here.example"
"""
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a distribution of one module that is a plugin of that name."""
    monkeypatch.syspath_prepend(tmp_path)
    modules: list[str] = []

    def put(name: str, code: str, *, distribution: str | None = None) -> None:
        module = (distribution or name).replace("-", "_") + "_of_the_test"
        modules.append(module)
        (tmp_path / f"{module}.py").write_text(code)
        folder = tmp_path / f"{module}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[penstock]\n{name} = {module}\n")

    yield put
    for module in modules:
        sys.modules.pop(module, None)


def test_an_entry_point_is_registered_by_its_name(install: Install) -> None:
    install("here", GOOD)
    manager = plugin_manager()
    assert manager.has_plugin("here")
    assert manager.hook.penstock_holder_url(claim=None) == "https://here.example"


def test_a_name_in_the_environment_leaves_a_plugin_out(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("here", GOOD)
    install("broken", "raise ImportError('no such library')")
    monkeypatch.setenv(DISABLED_VARIABLE, "here, broken,,nowhere")
    assert disabled_plugins() == ["here", "broken", "nowhere"]
    manager = plugin_manager()
    assert not manager.has_plugin("here")
    assert manager.hook.penstock_holder_url(claim=None) is None


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("raise ImportError('no such library')", "no such library"),
        (GOOD.replace("penstock_holder_url", "penstock_holder_address"), "unknown hook 'penstock_holder_address'"),
        (GOOD.replace("(claim)", "(claim, colour)"), "colour"),
        (GOOD.replace("@hookimpl", "@hookimpl(wrapper=True)"), "wrappers are not called"),
        (GOOD.replace("def ", "async def "), "make it a plain function"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_an_error_with_its_name_and_the_remedy(
    install: Install, code: str, text: str
) -> None:
    install("faulty", code)
    with pytest.raises(PluginError, match="plugin 'faulty' cannot be loaded") as raised:
        plugin_manager()
    assert text in str(raised.value)
    assert f"{DISABLED_VARIABLE}=faulty" in str(raised.value)


def test_two_plugins_of_one_name_are_an_error(install: Install) -> None:
    install("here", GOOD)
    install("here", GOOD, distribution="there")
    with pytest.raises(PluginError, match="two plugins are installed by the name of 'here'"):
        plugin_manager()


def test_a_plugin_given_to_an_engine_is_checked_too() -> None:
    class Misspelt:
        @hookimpl
        def penstock_grantd(self) -> None:
            pass

    with pytest.raises(PluginError, match="penstock_grantd"):
        plugin_manager(Misspelt())
