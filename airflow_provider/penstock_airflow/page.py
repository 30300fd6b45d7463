"""Whether the concurrency page stands in Airflow's menu, and where. Every process of Airflow asks, with the plugin."""

from __future__ import annotations

from importlib.util import find_spec

from penstock.errors import ConfigError

from penstock_airflow.configuration import SECTION, Configuration

PREFIX = "/penstock"
"""Below Airflow's own address."""
NAME, MENU = "Concurrency", "browse"
NEEDED = ("fastapi", "jinja2")
"""What the extra `web` brings; Airflow brings it, too."""


def is_wanted() -> bool:
    """What `[penstock] page` says. Raises ConfigError."""
    return Configuration().getboolean(SECTION, "page", fallback=True)


def missing() -> list[str]:
    """The packages without which the page cannot be made."""
    return [name for name in NEEDED if find_spec(name) is None]


def is_offered() -> bool:
    """Whether the plugin brings the page. Not where the setting cannot be read, of which `doctor` tells."""
    try:
        return is_wanted() and not missing()
    except ConfigError:
        return False
