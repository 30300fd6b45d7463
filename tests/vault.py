"""A secrets backend for the tests."""

from __future__ import annotations

from airflow.secrets import BaseSecretsBackend

SECRET = "open-sesame"


class Vault(BaseSecretsBackend):  # type: ignore[misc,unused-ignore]  # the types are checked where Airflow is not installed
    """Knows the store's URL under one name, one connection, and a name whose answer is an error."""

    def get_config(self, key: str) -> str | None:
        if key == "broken":
            raise RuntimeError(f"the vault is shut: {SECRET}")
        return f"postgresql://u:{SECRET}@vault/d" if key == "penstock/url" else None

    def get_conn_value(self, conn_id: str, team_name: str | None = None) -> str | None:
        return f"penstock://u:{SECRET}@vault:5433/d" if conn_id == "vaulted" else None
