"""What is configured in an SQL store: the configuration with its limits, and the installations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete, insert, select, update

from penstock.errors import ConfigChanged, DeploymentConflict
from penstock.rules import Source
from penstock.store import limits, reading
from penstock.store import tables as t
from penstock.store.contract import Deployment, Event, LimitRow, StoredConfiguration
from penstock.store.database import Database, again_if_undone
from penstock.store.digests import digest


class Configured(Database):
    """Its part of `penstock.store.contract.Store`."""

    @again_if_undone
    def configuration(self) -> StoredConfiguration:
        with self.transaction(read_only=True) as tx:
            return reading.configuration(tx.connection)

    def configure(
        self,
        document: Mapping[str, Any],
        *,
        expected_version: int,
        by: str,
        origin: str,
        changed: Mapping[str, int | None] | None = None,
    ) -> int:
        version = expected_version + 1
        row = {"document": dict(document), "changed_by": by, "changed_from": origin}
        tried = False

        @again_if_undone
        def configure() -> int:
            nonlocal tried
            cut_off, tried = tried, True
            with self.transaction() as tx:
                written = tx.connection.execute(
                    update(t.meta)
                    .where(t.meta.c.configuration_version == expected_version)
                    .values(configuration_version=version)
                )
                if written.rowcount != 1:
                    if cut_off and _is_in_force(reading.configuration(tx.connection), version, row):
                        return version  # the try that was cut off had come through
                    raise ConfigChanged(
                        f"the configuration was changed by somebody else, version {expected_version} is out of force; "
                        "look again, then repeat"
                    )
                tx.connection.execute(insert(t.configuration), {"version": version, "changed_at": tx.now, **row})
                tx.connection.execute(
                    insert(t.history),
                    {
                        "at": tx.now,
                        "event": Event.CHANGED.value,
                        "slots": dict(changed or {}),
                        "detail": f"version {version} by {by} from {origin}",
                    },
                )
                return version

        return configure()

    @again_if_undone
    def limit_rows(self) -> tuple[LimitRow, ...]:
        with self.transaction(read_only=True) as tx:
            return reading.limit_rows(tx.connection)

    @again_if_undone
    def settle(self, key: str, capacity: int | None, source: Source, *, version: int) -> bool:
        with self.transaction(grant_lock=True) as tx:
            if tx.version != version:
                return False
            limits.settle(tx.connection, self.dialect, key, capacity, source, tx.now)
            return True

    @again_if_undone
    def settled(self, version: int) -> None:
        with self.transaction() as tx:
            tx.connection.execute(
                update(t.meta).where(t.meta.c.settled_version < version).values(settled_version=version)
            )

    @again_if_undone
    def register(self, deployment: Deployment) -> None:
        key = digest(f"{deployment.host}/{deployment.name}")
        known = select(t.deployment.c.fingerprint).where(t.deployment.c.id == key)
        with self.transaction(read_only=True) as tx:  # each process asks; hardly one has to write
            if tx.connection.scalar(known) == deployment.fingerprint:
                return
        with self.transaction() as tx:
            values = {"id": key, "host": deployment.host, "name": deployment.name, "registered_at": tx.now}
            self.dialect.insert_if_absent(
                tx.connection, t.deployment, {**values, "fingerprint": deployment.fingerprint}
            )
            if (there := tx.connection.scalar(known)) != deployment.fingerprint:
                raise DeploymentConflict(
                    f"{deployment.host}/{deployment.name} is {there} already, this is {deployment.fingerprint}: name "
                    "one of the two otherwise (PENSTOCK_DEPLOYMENT, or the host's own setting), or if it has moved, "
                    f"`penstock db forget {deployment.host}/{deployment.name}`"
                )

    @again_if_undone
    def deployments(self) -> tuple[Deployment, ...]:
        with self.transaction(read_only=True) as tx:
            return reading.deployments(tx.connection)

    def forget(self, host: str, name: str) -> bool:
        known = any((there.host, there.name) == (host, name) for there in self.deployments())
        self._forget(host, name)
        return known

    @again_if_undone
    def _forget(self, host: str, name: str) -> None:
        with self.transaction() as tx:
            tx.connection.execute(delete(t.deployment).where(t.deployment.c.id == digest(f"{host}/{name}")))


def _is_in_force(there: StoredConfiguration, version: int, row: Mapping[str, Any]) -> bool:
    return there.version == version and all(getattr(there, name) == value for name, value in row.items())
