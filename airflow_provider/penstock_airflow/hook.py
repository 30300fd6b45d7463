"""The connection type `penstock`: its form in the UI, its test, and an engine on the store for code of one's own."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseHook
from penstock.errors import PenstockError

from penstock_airflow import connections
from penstock_airflow.provider_info import CONNECTION_TYPE

if TYPE_CHECKING:
    from penstock.engine import Engine


class PenstockHook(BaseHook):  # type: ignore[misc,unused-ignore]  # the types are checked where Airflow is not installed
    """The slot store that an Airflow connection names; `[penstock] conn_id` takes the same connections."""

    conn_name_attr: ClassVar[str] = "penstock_conn_id"
    default_conn_name: ClassVar[str] = "penstock_default"
    conn_type: ClassVar[str] = connections.CONN_TYPE
    hook_name: ClassVar[str] = CONNECTION_TYPE["hook-name"]

    def __init__(self, penstock_conn_id: str = default_conn_name, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.penstock_conn_id = penstock_conn_id

    def get_uri(self) -> str:
        """The store's SQLAlchemy URL, with its password. Raises ConfigError, StoreUnavailable."""
        return connections.store_url(self.penstock_conn_id)

    def get_conn(self) -> Engine:
        """An engine on the store, to close after use: `with hook.get_conn() as engine, engine.hold("database"): …`.

        Raises ConfigError, StoreUnavailable, SchemaMismatch.
        """
        from penstock.connection import connect  # noqa: PLC0415

        return connect(self.get_uri(), lazy=True)

    def test_connection(self) -> tuple[bool, str]:
        """Whether the store answers and has the tables that this Penstock works with, and what is to be done if not."""
        from penstock.connection import existing_store  # noqa: PLC0415
        from penstock.diagnosis import State  # noqa: PLC0415
        from penstock.diagnosis.stores import store_parts  # noqa: PLC0415

        try:
            with contextlib.closing(existing_store(self.get_uri())) as store:
                store_part = next(store_parts(store, "this connection"))
        except PenstockError as error:
            return False, " ".join(str(error).split())
        remedy = f"; {store_part.remedy}" if store_part.remedy else ""
        return store_part.state is State.OK, store_part.detail + remedy

    # Airflow 3.1 asks the hook for its form; later ones read the same from provider_info and do not call these.

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """The standard fields of the form, as Airflow 3.1 wants them."""
        return {key.replace("-", "_"): value for key, value in CONNECTION_TYPE["ui-field-behaviour"].items()}

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """The fields of the form beyond the standard ones, as Airflow 3.1 wants them."""
        from wtforms import StringField  # noqa: PLC0415  # Airflow's API server puts one in its place
        from wtforms.validators import any_of  # noqa: PLC0415

        return {
            name: StringField(
                field["label"],
                validators=[any_of(field["schema"]["enum"])] if "enum" in field["schema"] else [],
                description=field["description"],
                default=field["schema"].get("default"),
            )
            for name, field in CONNECTION_TYPE["conn-fields"].items()
        }
