"""The plugin that Airflow loads (entry point `airflow.plugins`): a link from a task that waits to what it waits for.

Airflow drops a plugin that fails to import in silence, so nothing happens here. No listener: any listener makes Airflow
reject DAGs that use `end_from_trigger`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from airflow.sdk import BaseOperatorLink

from penstock_airflow import compatibility

AirflowPlugin: Any = compatibility.plugin_base()


class HolderLink(BaseOperatorLink):  # type: ignore[misc,unused-ignore]  # the types are checked where Airflow is not installed
    """Of a task that waits: the page of who holds the slots it waits for, in this Airflow or in any other host."""

    name = "Penstock: who holds the slot"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """The page; empty when the task does not wait, or the store cannot be asked. In the API server."""
        from penstock_airflow import links  # noqa: PLC0415  # loads at the first question, not with the plugin

        return links.holder_page(ti_key)


class PenstockPlugin(AirflowPlugin):  # type: ignore[misc]  # the class is known only at run time
    """Registers the link for every operator."""

    name = "penstock"
    global_operator_extra_links: ClassVar[list[Any]] = [HolderLink()]
