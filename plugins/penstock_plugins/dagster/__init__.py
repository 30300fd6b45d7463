"""Dagster's limits as limits of Penstock: `penstock migrate dagster SOURCE`. Dagster itself is not needed."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.hookspecs import ImportedConfiguration, hookimpl

KIND = "dagster"


@hookimpl(trylast=True)
def penstock_import_configuration(kind: str, source: str, options: Mapping[str, str]) -> ImportedConfiguration | None:
    """What limits in a dagster.yaml, Helm values, Dagster+ settings or a DAGSTER_HOME. Raises ConfigError.

    Options: `instance_url`, Dagster's database, for the limits of pools; `tags`, a file that says which tags of the
    hosts stand for Dagster's; `code`, Python definitions to report on.
    """
    if kind != KIND:
        return None
    # Loaded here: every process under Penstock loads the plugins, few migrate.
    from penstock_plugins.dagster.migration import migrated  # noqa: PLC0415

    return migrated(source, options)
