"""The configuration: parsed once, checked whole, then frozen. The store holds it as one versioned JSON document."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    ValidationError,
    field_validator,
    model_validator,
)

from penstock.claim import CAPACITY_MAX, check_pool_name, check_text
from penstock.errors import ClaimError


class Granularity(StrEnum):
    """Whether a pool's slots are taken by each op, or once by the whole run."""

    OP = "op"
    RUN = "run"


def _usable_name(name: str) -> str:
    try:
        return check_pool_name(name)
    except ClaimError as error:
        raise ValueError(str(error)) from None


def _storable(text: str) -> str:
    try:
        return check_text(text, "the text")
    except ClaimError as error:
        raise ValueError(str(error)) from None


def _storable_value(value: str | PerUniqueValue | None) -> str | PerUniqueValue | None:
    return _storable(value) if isinstance(value, str) else value


Limit = Annotated[StrictInt, Field(ge=0, le=CAPACITY_MAX)]
PoolName = Annotated[StrictStr, AfterValidator(_usable_name)]
StoredText = Annotated[StrictStr, AfterValidator(_storable)]


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_block_is_absent(cls, value: object) -> object:
        """`pools:` with nothing below it is null in YAML; Dagster's parser crashes on it, ours takes it as empty."""
        return {} if value is None else value


class PerUniqueValue(_Block):
    """`value: {applyLimitPerUniqueValue: true}`: the limit holds for each value apart."""

    applyLimitPerUniqueValue: bool = Field(strict=True)  # noqa: N815  # Dagster's spelling


def rule_value(value: object) -> object:
    """A rule's `value` as written; `{applyLimitPerUniqueValue: false}` is Dagster's long way to leave it out."""
    if isinstance(value, Mapping) and value.keys() == {"applyLimitPerUniqueValue"}:
        return None if value["applyLimitPerUniqueValue"] is False else value
    return value


class TagLimit(_Block):
    """A limit for those that carry a tag: any value together, one value, or each value apart."""

    key: Annotated[StoredText, Field(min_length=1)]
    limit: Limit
    value: Annotated[
        StrictStr | PerUniqueValue | None, BeforeValidator(rule_value), AfterValidator(_storable_value)
    ] = None

    @property
    def per_unique_value(self) -> bool:
        """Whether each value has a limit of its own."""
        return isinstance(self.value, PerUniqueValue)


def _check_no_rule_twice(rules: tuple[TagLimit, ...]) -> tuple[TagLimit, ...]:
    """Dagster lets the last of two equal rules win; here that is a fault."""
    seen: set[tuple[str, str | PerUniqueValue | None]] = set()
    for rule in rules:
        if (rule.key, rule.value) in seen:
            raise ValueError(f"two rules for the same tag {rule.key!r}; keep the one that is meant")
        seen.add((rule.key, rule.value))
    return rules


TagLimits = Annotated[tuple[TagLimit, ...], AfterValidator(_check_no_rule_twice)]


class PoolLimit(_Block):
    """An explicit limit of one pool. `granularity` absent: that of `pools.granularity`."""

    limit: Limit
    granularity: Granularity | None = None
    description: StoredText | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain_number(cls, value: object) -> object:
        return value if isinstance(value, Mapping) or value is None else {"limit": value}


class Pools(_Block):
    """Pools: the limit of those that have none of their own, and the explicit ones."""

    default_limit: Limit | None = None
    granularity: Granularity = Granularity.OP
    op_granularity_run_buffer: Limit = 0
    limits: dict[PoolName, PoolLimit] = Field(default_factory=dict)

    @field_validator("limits", mode="before")
    @classmethod
    def _absent_limits(cls, value: object) -> object:
        return {} if value is None else value


class Runs(_Block):
    """How many runs may be in progress, in all and by tag."""

    max_concurrent_runs: Annotated[StrictInt, Field(ge=-1, le=CAPACITY_MAX)] | None = None
    tag_concurrency_limits: TagLimits = ()

    @field_validator("tag_concurrency_limits", mode="before")
    @classmethod
    def _absent_rules(cls, value: object) -> object:
        return () if value is None else value

    @property
    def capacity(self) -> int | None:
        """The run total; None is unlimited (absent or -1)."""
        return None if self.max_concurrent_runs in (None, -1) else self.max_concurrent_runs


class Ops(_Block):
    """Limits on the ops within each one run (Dagster's executor settings)."""

    max_concurrent: Limit | None = None
    tag_concurrency_limits: TagLimits = ()

    @field_validator("tag_concurrency_limits", mode="before")
    @classmethod
    def _absent_rules(cls, value: object) -> object:
        return () if value is None else value

    def replaced_by(self, within: Mapping[str, Any] | None) -> Self:
        """These limits with those that a run brings of its own; what it gives replaces what is configured."""
        if not within:
            return self
        own = type(self).model_validate(dict(within))
        return self.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})


class Concurrency(_Block):
    """The `concurrency:` block: a superset of dagster.yaml's."""

    pools: Pools = Field(default_factory=Pools)
    runs: Runs = Field(default_factory=Runs)
    ops: Ops = Field(default_factory=Ops)

    def document(self) -> dict[str, Any]:
        """The block as plain JSON values, with what is at its default left out."""
        return self.model_dump(mode="json", exclude_defaults=True)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """The reverse of `document`. Raises pydantic's ValidationError on a document that is none."""
        return cls.model_validate(document)

    def checked(self) -> Self:
        """The same, read as a file's is: what was put together by copies is not. Raises ClaimError."""
        try:
            return type(self).model_validate(self.model_dump())
        except ValidationError as error:
            raise ClaimError(f"the configuration would be wrong: {_faults(error)}") from None

    def pool_granularity(self, name: str) -> Granularity:
        """How a pool's slots are taken: its own setting, else the common one."""
        own = self.pools.limits.get(name)
        return own.granularity if own is not None and own.granularity is not None else self.pools.granularity

    def with_pool(self, name: str, pool: PoolLimit | None) -> Self:
        """The same configuration with one explicit pool limit set, or (None) deleted."""
        limits = {key: value for key, value in self.pools.limits.items() if key != name}
        if pool is not None:
            limits[_usable_name(name)] = pool
        return self.model_copy(update={"pools": self.pools.model_copy(update={"limits": limits})})


def check_within(within: Mapping[str, Any]) -> None:
    """Whether a run's own limits on its ops are an `ops` block. Raises ClaimError with all that is wrong."""
    try:
        Ops.model_validate(dict(within))
    except ValidationError as error:
        raise ClaimError(f"a run's own limits are wrong: {_faults(error)}") from None


def _faults(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, fault['loc']))}: {fault['msg'].removeprefix('Value error, ')}" for fault in error.errors()
    )


__all__ = [
    "Concurrency",
    "Granularity",
    "Ops",
    "PerUniqueValue",
    "PoolLimit",
    "Pools",
    "Runs",
    "TagLimit",
    "check_within",
]
