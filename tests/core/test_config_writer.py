"""A configuration that is written reads as it was, whatever stands in it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.config import Concurrency
from penstock.config_file import read
from penstock.config_writer import scalar, written

LIMIT = st.integers(0, 10_000)
NAME = st.text(st.characters(exclude_categories=["Cc", "Zs", "Zl", "Zp", "Cs"]), min_size=1, max_size=20).map(
    lambda name: name + "x"
)
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30) | st.sampled_from(
    ["yes", "2024-01-31", "1e3", "~", "#", "a: b", "*", "line\nbreak", "\t", "\u2028", "0x1F", "null"]
)
VALUE = st.none() | TEXT | st.just({"applyLimitPerUniqueValue": True})
RULES = st.lists(
    st.fixed_dictionaries({"key": TEXT.filter(bool), "value": VALUE, "limit": LIMIT}),
    max_size=3,
    unique_by=lambda rule: (rule["key"], str(rule["value"])),
)
POOL = st.fixed_dictionaries(
    {"limit": LIMIT}, optional={"granularity": st.sampled_from(["op", "run"]), "description": TEXT}
)
BLOCK = st.fixed_dictionaries(
    {},
    optional={
        "pools": st.fixed_dictionaries(
            {},
            optional={
                "default_limit": LIMIT,
                "granularity": st.sampled_from(["op", "run"]),
                "limits": st.dictionaries(NAME, POOL, max_size=3),
            },
        ),
        "runs": st.fixed_dictionaries(
            {}, optional={"max_concurrent_runs": st.integers(-1, 10_000), "tag_concurrency_limits": RULES}
        ),
        "ops": st.fixed_dictionaries({}, optional={"max_concurrent": LIMIT, "tag_concurrency_limits": RULES}),
    },
)


@given(BLOCK, TEXT)
def test_what_is_written_reads_as_it_was(block: dict[str, Any], comment: str) -> None:
    concurrency = Concurrency.model_validate(block)
    origins = dict.fromkeys(
        ["pools.default_limit", "pools.granularity", "runs.max_concurrent_runs", "runs.tag_concurrency_limits[0]"],
        comment,
    ) | {f"pools.limits.{name}": comment for name in concurrency.pools.limits}
    assert read(written(concurrency, origins, [comment])).concurrency == concurrency


@given(TEXT)
def test_a_scalar_is_one_line(text: str) -> None:
    assert len(scalar(text).splitlines()) == 1


def test_an_empty_configuration_is_one_too() -> None:
    assert written(Concurrency(), {}) == "concurrency:\n  {}\n"
    assert read(written(Concurrency(), {})).concurrency == Concurrency()


@pytest.mark.parametrize("place", ["pools.granularity", "runs.max_concurrent_runs"])
def test_a_default_is_written_when_something_is_said_of_it(place: str) -> None:
    block = {"pools": {"granularity": "op"}, "runs": {"max_concurrent_runs": -1}}
    text = written(Concurrency.model_validate(block), {place: "here\nand there"})
    assert "# here\n    # and there\n    " in text
