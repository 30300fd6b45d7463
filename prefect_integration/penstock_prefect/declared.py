"""What a deployment asks for before its runs start: the job variable `penstock`, read by the worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penstock.errors import ClaimError
from penstock.settings import OnBlocked
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from penstock_prefect.claims import Limits, asked_pools

VARIABLE = "penstock"
WITHIN = {"max_concurrent", "tag_concurrency_limits"}
"""A run's own limits on its tasks: in place of the configured ones, and fixed by the claim that its worker makes."""


class Declared(BaseModel):
    """`penstock: {pools: ["database:2"], priority: 5}` among a deployment's job variables, or a run's own."""

    model_config = ConfigDict(extra="forbid")

    pools: list[str] = Field(default=[], description="Pools that the whole run holds, as `name` or `name:slots`.")
    priority: int = Field(default=0, description="Higher ones are granted first.")
    on_blocked: OnBlocked = Field(default="wait", description="What becomes of a run that has to wait.")
    wait_timeout_seconds: float | None = Field(default=None, ge=0, description="A run that waits longer fails.")
    max_concurrent: int | None = Field(
        default=None, description="How many of the run's tasks may be under way at once."
    )
    tag_concurrency_limits: list[dict[str, Any]] | None = Field(
        default=None, description="Limits on the run's tasks by their tags, as in the configuration's `ops` block."
    )

    @classmethod
    def of(cls, *job_variables: Mapping[str, Any] | None) -> Limits:
        """The limits said in these job variables; the later ones stand over the earlier. Raises ClaimError."""
        said: dict[str, Any] = {}
        for variables in job_variables:
            value = (variables or {}).get(VARIABLE) or {}
            if not isinstance(value, Mapping):
                raise ClaimError(
                    f"job variable {VARIABLE!r}: {value!r}: a mapping such as {{pools: [database:2]}} is expected"
                )
            said |= value
        try:
            declared = cls.model_validate(said)
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
            raise ClaimError(f"job variable {VARIABLE!r}: {faults}") from error
        return Limits(
            pools=asked_pools(declared.pools),
            priority=declared.priority,
            on_blocked=declared.on_blocked,
            wait_timeout_seconds=declared.wait_timeout_seconds,
            within=declared.model_dump(include=WITHIN, exclude_none=True) or None,
        )
