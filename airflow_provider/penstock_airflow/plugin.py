"""The plugin that Airflow loads (entry point `airflow.plugins`): the concurrency page, and a link from a task that
waits to what it waits for.

Airflow drops a plugin that fails to import in silence, so nothing happens here. No listener: any listener makes Airflow
reject DAGs that use `end_from_trigger`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from airflow.sdk import BaseOperatorLink

from penstock_airflow import compatibility, page

AirflowPlugin: Any = compatibility.plugin_base()


class HolderLink(BaseOperatorLink):  # type: ignore[misc,unused-ignore]  # the types are checked where Airflow is not installed
    """Of a task that waits: the page of who holds the slots it waits for, in this Airflow or in any other host."""

    name = "Penstock: who holds the slot"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """The page; empty when the task does not wait, or the store cannot be asked. In the API server."""
        from penstock_airflow import links  # noqa: PLC0415  # loads at the first question, not with the plugin

        return links.holder_page(ti_key)


async def concurrency_page(scope: Any, receive: Any, send: Any) -> None:
    """The page as an ASGI application, for the API server to mount."""
    from penstock_airflow import web  # noqa: PLC0415  # loads with the first who looks

    await web.entrance(scope, receive, send)


class PenstockPlugin(AirflowPlugin):  # type: ignore[misc]  # the class is known only at run time
    """Registers the link for every operator, and the page in the menu."""

    name = "penstock"
    global_operator_extra_links: ClassVar[list[Any]] = [HolderLink()]
    fastapi_apps: ClassVar[list[Any]] = []
    external_views: ClassVar[list[Any]] = []
    if page.is_offered():
        fastapi_apps = [{"app": concurrency_page, "url_prefix": page.PREFIX, "name": "Penstock"}]
        external_views = [
            {
                "name": page.NAME,
                "href": f"{page.PREFIX.lstrip('/')}/",  # below Airflow's own address, whatever that is
                "destination": "nav",
                "category": page.MENU,
                "url_route": "penstock",
            }
        ]
