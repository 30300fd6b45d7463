"""Loading plugins, and the one manager that the engine goes through."""

from __future__ import annotations

from functools import cache

import pluggy

from penstock import hookspecs


def plugin_manager(*plugins: object) -> pluggy.PluginManager:
    """A manager with the entry points of group `penstock` and the given plugins on top."""
    manager = pluggy.PluginManager("penstock")
    manager.add_hookspecs(hookspecs)
    manager.load_setuptools_entrypoints("penstock")
    for plugin in plugins:
        manager.register(plugin)
    manager.check_pending()
    return manager


@cache
def installed_plugins() -> pluggy.PluginManager:
    """The manager of this process, loaded at first use."""
    return plugin_manager()
