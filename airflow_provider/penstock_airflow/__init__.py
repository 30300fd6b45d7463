"""The Airflow provider of Penstock. Nothing loads here: each seam of Airflow has a module of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock_airflow.authoring import limited

__all__ = ["limited"]


def __getattr__(name: str) -> Any:
    # Every process of Airflow imports this package for its policy: `limited` loads where a DAG file asks for it, and no
    # module is called so, or it would take the name.
    if name == "limited":
        from penstock_airflow.authoring import limited as function  # noqa: PLC0415

        return function
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
