"""What concerns this Prefect installation: `PREFECT_INTEGRATIONS_PENSTOCK_*`, and the engine that follows from it."""

from __future__ import annotations

import atexit
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from penstock.hooks import plugin_manager
from penstock.settings import Settings, configured_url
from penstock.settings import deployment as deployment_name
from prefect.logging import get_logger
from prefect.settings.base import PrefectBaseSettings, build_settings_config
from pydantic import Field, SecretStr

if TYPE_CHECKING:
    from penstock.engine import Engine

HOST = "prefect"
log = get_logger("penstock")


class PenstockSettings(PrefectBaseSettings):  # type: ignore[misc]  # Prefect is not installed where types are checked
    """Read where Prefect reads its own: environment, profile, `prefect.toml`, `pyproject.toml`."""

    model_config = build_settings_config(("integrations", "penstock"))

    store_url: SecretStr | None = Field(
        default=None,
        description="The store's URL; without it PENSTOCK_STORE_URL counts. With neither, Penstock is inactive.",
    )
    deployment: str | None = Field(
        default=None, description="The name of this installation in the store; by default `prefect`."
    )
    session_ttl_seconds: float | None = Field(
        default=None,
        ge=1,
        le=3600,
        description="How long after its last beat the slots of a vanished process are freed; by default 30 s.",
    )

    @property
    def configured_store_url(self) -> str | None:
        """The store's URL with its password, or None: there is no local file to fall back to inside Prefect."""
        return configured_url(self.store_url.get_secret_value() if self.store_url is not None else None)

    @property
    def deployment_name(self) -> str:
        """This installation's name in the store."""
        return deployment_name(self.deployment, host=HOST)

    @property
    def figures(self) -> Settings:
        """The engine's settings, with what is set here."""
        defaults = Settings.from_environment()
        ttl_seconds = self.session_ttl_seconds
        return defaults if ttl_seconds is None else replace(defaults, session_ttl_seconds=ttl_seconds)


class _Installation:
    """The engines of this process: in practice one, made at the first claim."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engines: dict[tuple[str, str, Settings], Engine] = {}
        self._said_inactive = False

    def engine(self, plugin: object) -> Engine | None:
        settings = PenstockSettings()
        url = settings.configured_store_url
        with self._lock:
            if url is None:
                if not self._said_inactive:
                    self._said_inactive = True
                    log.warning(
                        "Penstock is inactive, nothing is limited: no store is configured. Set "
                        "PREFECT_INTEGRATIONS_PENSTOCK_STORE_URL or PENSTOCK_STORE_URL"
                    )
                return None
            key = (url, settings.deployment_name, settings.figures)
            if key not in self._engines:
                from penstock.connection import connect  # noqa: PLC0415  # SQLAlchemy loads here, not at import

                engine = connect(
                    url,
                    host=HOST,
                    deployment=key[1],
                    settings=settings.figures,
                    plugins=plugin_manager(plugin),
                    lazy=True,
                )
                # Slots of a process that ends in good order come back at once, not after its session's TTL.
                atexit.register(engine.close)
                self._engines[key] = engine
            return self._engines[key]


_installation = _Installation()


def engine(plugin: object) -> Engine | None:
    """The engine of this process, connected at first use; None without a store, which is said once in the log.

    `plugin` hears the engine's hooks beside the installed ones; always the same one.

    Raises StoreUnavailable or SchemaMismatch: a store that is configured and not there never means "unlimited".
    """
    return _installation.engine(plugin)
