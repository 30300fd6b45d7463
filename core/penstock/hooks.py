"""Loading plugins, and calling their hooks: what each kind of hook does with errors is decided here, once for all."""

from __future__ import annotations

import importlib.metadata
import inspect
import logging
import os
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import pluggy

from penstock import hookspecs
from penstock.errors import PenstockError, PluginError
from penstock.hookspecs import CHANGES, TASKS

if TYPE_CHECKING:
    from pluggy import HookImpl, HookimplOpts

log = logging.getLogger("penstock.plugins")
DISABLED_VARIABLE = "PENSTOCK_PLUGINS_DISABLED"


class Plugins(pluggy.PluginManager):
    """The plugins of a process or engine; `hook.penstock_…` calls them as hookspecs.py promises."""

    def __init__(self) -> None:
        super().__init__("penstock")
        self.add_hookspecs(hookspecs)
        for name in disabled_plugins():
            self.set_blocked(name)

    def load_installed(self) -> None:
        """Register what the entry points name. Raises PluginError: a plugin may be what puts a limit on a claim."""
        for entry_point in sorted(importlib.metadata.entry_points(group="penstock")):
            name = entry_point.name
            if self.is_blocked(name):
                continue
            remedy = f"Mend or uninstall it, or set {DISABLED_VARIABLE}={name}"
            if self.has_plugin(name):
                raise PluginError(f"two plugins are installed by the name of {name!r}. Uninstall one of them")
            try:
                self.register(entry_point.load(), name)
            except Exception as error:
                raise PluginError(f"plugin {name!r} cannot be loaded: {error}. {remedy}") from error

    def register(self, plugin: object, name: str | None = None) -> str | None:
        """Add a plugin. Raises PluginError when it has a hook that is none, or one with arguments that are none."""
        try:
            registered = super().register(plugin, name)
            self.check_pending()
        except pluggy.PluginValidationError as error:
            raise PluginError(str(error)) from error
        return registered

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> HookimplOpts | None:
        """Pluggy's reading of a hook, less what would not be called as hookspecs.py promises."""
        options = super().parse_hookimpl_opts(plugin, name)
        if options is not None:
            if options["wrapper"] or options["hookwrapper"]:
                raise PluginError(f"{name}: wrappers are not called: no plugin stands between Penstock and another")
            if inspect.iscoroutinefunction(getattr(plugin, name)):
                raise PluginError(f"{name}: nobody awaits a hook; make it a plain function")
        return options

    def _hookexec(
        self, hook_name: str, methods: Sequence[HookImpl], kwargs: Mapping[str, object], firstresult: bool
    ) -> object | list[object]:
        """One plugin after the other (tryfirst, then the last registered, trylast last), each on its own.

        Pluggy's own way stops at the first error, and gives all the same arguments, so that of two plugins that both
        change a claim one would be overruled. Pluggy has no public seam here; the tests hold us to it.
        """
        changed = CHANGES.get(hook_name)
        results: list[object] = []
        for implementation in reversed(methods):
            try:
                result = super()._hookexec(hook_name, [implementation], kwargs, True)
                if changed is not None and result is not None:
                    _check_change(kwargs[changed], result)
            except Exception as error:
                _met(error, hook_name, implementation)
                continue
            if result is None:
                continue
            if firstresult:
                return result
            if changed is not None:
                kwargs = {**kwargs, changed: result}
            results.append(result)
        return None if firstresult else results


def _met(error: Exception, hook_name: str, implementation: HookImpl) -> None:
    """Raise the error where a result depends on it, else log it."""
    name = _shown(implementation)
    if hook_name in TASKS and isinstance(error, PenstockError):
        raise error
    if hook_name in CHANGES or hook_name in TASKS:
        text = f"plugin {name!r} failed in {hook_name}: {type(error).__name__}: {error}"
        raise PluginError(f"{text}. Mend it, or set {DISABLED_VARIABLE}={name} to do without it") from error
    log.error("plugin %r failed in %s; the others are called all the same", name, hook_name, exc_info=error)


def _shown(implementation: HookImpl) -> str:
    """The plugin's name; of one registered without a name, for which pluggy takes a number, its class."""
    name, plugin = implementation.plugin_name, implementation.plugin
    return type(plugin).__qualname__ if name == str(id(plugin)) else name


def _check_change(before: Any, after: Any) -> None:
    """Raises TypeError or ValueError on what the engine could not work with."""
    from penstock.claim import Claim  # noqa: PLC0415  # with rules below, it loads when a claim is made anyway

    if isinstance(before, Claim):
        if not isinstance(after, Claim):
            raise TypeError(f"it returned {after!r}; a Claim or None is expected")
        if (after.claim_id, after.kind, after.holder) != (before.claim_id, before.kind, before.holder):
            raise ValueError("it changed who holds; take the claim through dataclasses.replace, and leave that alone")
        return
    from penstock.rules import Demand, limit_kind  # noqa: PLC0415  # pydantic loads here

    if isinstance(after, str) or not isinstance(after, Sequence) or any(not isinstance(d, Demand) for d in after):
        raise TypeError(f"it returned {after!r}; a sequence of Demand or None is expected")
    keys = [demand.key for demand in after]
    for key in keys:
        limit_kind(key)
        if keys.count(key) > 1:
            raise ValueError(f"it demands {key} twice; name each limit once, with the slots it needs in all")


def disabled_plugins() -> list[str]:
    """The names in `PENSTOCK_PLUGINS_DISABLED`, which are separated by commas."""
    return [name for part in os.environ.get(DISABLED_VARIABLE, "").split(",") if (name := part.strip())]


def plugin_manager(*plugins: object) -> Plugins:
    """The plugins of the entry points in group `penstock`, with the given ones on top. Raises PluginError."""
    manager = Plugins()
    manager.load_installed()
    for plugin in plugins:
        manager.register(plugin)
    return manager


@cache
def installed_plugins() -> Plugins:
    """The plugins of this process, loaded at first use."""
    return plugin_manager()
