"""What may be asked for, and how it is written."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.claim import Claim, ClaimKind, check_pool_name, encode_part, parse_pool, parse_pools, parse_tag
from penstock.errors import ClaimError

TEXTS = st.text(st.characters(exclude_characters="\x00", exclude_categories=("Cs",)))
PARTS = st.text(st.sampled_from("ab%:=/*é"), min_size=1, max_size=8)
NAMES = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=40).filter(
    lambda name: not name.rpartition(":")[2].isdecimal()
)
CLAIMS = st.builds(
    Claim,
    kind=st.sampled_from(ClaimKind),
    host=PARTS,
    deployment=PARTS,
    run_id=PARTS,
    op_id=st.none() | PARTS,
    attempt=st.integers(1, 5),
    pools=st.dictionaries(NAMES, st.integers(1, 100), max_size=3),
    tags=st.dictionaries(TEXTS, TEXTS, max_size=3),
    priority=st.integers(-100, 100),
    url=st.none() | TEXTS,
    in_run=st.booleans(),
)


@given(NAMES, st.integers(1, 10_000))
def test_a_pool_is_written_with_or_without_its_slots(name: str, slots: int) -> None:
    assert parse_pool(f"{name}:{slots}") == (name, slots)
    assert parse_pool(name) == (name, 1)


@given(st.text(max_size=300))
def test_any_text_is_a_pool_or_a_claim_error(text: str) -> None:
    try:
        name, slots = parse_pool(text)
    except ClaimError:
        return
    assert check_pool_name(name) == name
    assert slots >= 1


@pytest.mark.parametrize("name", ["", "a b", "a\n", "\x00", "a:3", "x" * 256, 5, None])
def test_names_that_no_pool_can_have(name: object) -> None:
    with pytest.raises(ClaimError):
        check_pool_name(name)


@pytest.mark.parametrize("name", ["x" * 255, "a:b", "a:", ":", "s3://bucket/key", "ünï", "a:3x"])
def test_names_that_pools_may_have(name: str) -> None:
    assert check_pool_name(name) == name


def test_pools_as_texts_and_mappings_are_one_mapping_and_none_stands_twice() -> None:
    assert parse_pools(["a:2", {"b": 3}, "c"]) == {"a": 2, "b": 3, "c": 1}
    with pytest.raises(ClaimError, match="'a' is named twice"):
        parse_pools(["a", {"a": 1}])


@pytest.mark.parametrize("slots", [0, -1, True, 1.0, "1"])
def test_slots_are_whole_numbers_from_one(slots: object) -> None:
    with pytest.raises(ClaimError, match="at least 1"):
        Claim(kind=ClaimKind.OP, host="h", deployment="d", pools={"a": slots})  # type: ignore[dict-item]


def test_a_run_claim_needs_a_run_id_and_tags_are_text() -> None:
    with pytest.raises(ClaimError, match="needs a run id"):
        Claim(kind=ClaimKind.RUN, host="h", deployment="d")
    with pytest.raises(ClaimError, match="are text"):
        Claim(kind=ClaimKind.OP, host="h", deployment="d", tags={"a": 1})  # type: ignore[dict-item]


def test_what_a_claim_asks_cannot_be_changed_from_outside() -> None:
    pools = {"a": 1}
    claim = Claim(kind=ClaimKind.OP, host="h", deployment="d", pools=pools)
    pools["a"] = 5
    assert claim.pools == {"a": 1}
    with pytest.raises(TypeError):
        claim.pools["a"] = 5  # type: ignore[index]


@given(CLAIMS)
def test_a_claim_survives_its_way_through_json(claim: Claim) -> None:
    assert Claim.from_dict(json.loads(json.dumps(claim.as_dict()))) == claim


@given(CLAIMS, CLAIMS)
def test_holders_are_equal_only_when_those_who_hold_are(one: Claim, other: Claim) -> None:
    def who(claim: Claim) -> tuple[object, ...]:
        owner = (claim.kind, claim.host, claim.deployment, claim.run_id)
        match claim.kind:
            case ClaimKind.RUN:
                return owner
            case ClaimKind.RUN_POOL:
                return (*owner, *claim.pools)
            case ClaimKind.OP:
                return (*owner, claim.op_id, claim.attempt)

    if one.holder is not None and other.holder is not None:
        assert (one.holder == other.holder) == (who(one) == who(other))


@given(st.lists(PARTS, max_size=4), st.lists(PARTS, max_size=4))
def test_encoded_parts_never_run_together(one: list[str], other: list[str]) -> None:
    assert ("/".join(map(encode_part, one)) == "/".join(map(encode_part, other))) == (one == other)


@pytest.mark.parametrize(
    ("text", "tag"), [("a:b", ("a", "b")), ("a:b:c", ("a", "b:c")), ("a", ("a", "")), ("a:", ("a", ""))]
)
def test_a_tag_as_one_text_splits_at_its_first_colon(text: str, tag: tuple[str, str]) -> None:
    assert parse_tag(text) == tag
