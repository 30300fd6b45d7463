"""Reading a configuration: the users' own blocks, and every way to get one wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.claim import Claim, ClaimKind
from penstock.config import Concurrency, Granularity
from penstock.config_file import read, read_file
from penstock.errors import ConfigError
from penstock.rules import Demand, Source, demands

SEEDS = sorted((Path(__file__).parent / "seeds").glob("*.yaml"))


def op(*pools: str) -> Claim:
    return Claim(kind=ClaimKind.OP, host="h", deployment="d", pools=dict.fromkeys(pools, 1))


def run(**tags: str) -> Claim:
    return Claim(kind=ClaimKind.RUN, host="h", deployment="d", run_id="r", tags=tags)


def seed(name: str) -> Concurrency:
    return read_file(Path(__file__).parent / "seeds" / f"{name}.yaml").concurrency


def faults(text: str) -> list[tuple[int | None, str]]:
    with pytest.raises(ConfigError) as error:
        read(text)
    return [(fault.line, f"{fault.path}: {fault.message}") for fault in error.value.faults]


@pytest.mark.parametrize("path", SEEDS, ids=lambda path: path.stem)
def test_every_block_of_the_documents_is_good(path: Path) -> None:
    concurrency = read_file(path).concurrency
    assert Concurrency.from_document(concurrency.document()) == concurrency


@pytest.mark.parametrize(("name", "limit"), [("pools_default_limit_1", 1), ("pools_default_limit_5", 5)])
def test_a_default_covers_every_pool(name: str, limit: int) -> None:
    assert demands(op("foo"), seed(name)) == (Demand("pool:foo", 1, limit, Source.DEFAULT),)
    assert demands(run(), seed(name)) == (Demand("runs", 1, None, Source.NONE),)


def test_run_granularity_takes_the_pool_with_the_run() -> None:
    concurrency = seed("pools_granularity_run")
    assert concurrency.pool_granularity("foo") is Granularity.RUN
    assert demands(op("foo"), concurrency) == ()
    claim = Claim(kind=ClaimKind.RUN, host="h", deployment="d", run_id="r", pools={"foo": 1})
    assert [demand.key for demand in demands(claim, concurrency)] == ["pool:foo", "runs"]


def test_a_run_total() -> None:
    assert demands(run(), seed("runs_max_15")) == (Demand("runs", 1, 15, Source.RULE),)


def test_run_tags_by_value_and_by_key() -> None:
    concurrency = seed("run_tags")
    assert demands(run(**{"dagster/sensor_name": "my_cool_sensor", "dagster/backfill": "b"}), concurrency) == (
        Demand("run_tag:dagster%2Fbackfill", 1, 10, Source.RULE),
        Demand("run_tag:dagster%2Fsensor_name=my_cool_sensor", 1, 5, Source.RULE),
        Demand("runs", 1, None, Source.NONE),
    )
    assert [d.key for d in demands(run(**{"dagster/sensor_name": "another"}), concurrency)] == ["runs"]


def test_run_tags_per_unique_value() -> None:
    for value in ("a", "b"):
        assert Demand(f"run_tag:dagster%2Fbackfill=*:{value}", 1, 10, Source.RULE) in demands(
            run(**{"dagster/backfill": value}), seed("run_tag_per_unique_value")
        )


def test_combined_blocks() -> None:
    assert [(d.key, d.capacity) for d in demands(run(**{"dagster/backfill": "x"}), seed("runs_and_run_tag"))] == [
        ("run_tag:dagster%2Fbackfill", 3),
        ("runs", 10),
    ]
    assert demands(op("p"), seed("runs_and_pools"))[0].capacity == 3
    assert demands(run(), seed("runs_and_pools"))[0].capacity == 10


def test_rules_on_tags_that_no_host_sets_are_warned_of() -> None:
    warnings = read_file(Path(__file__).parent / "seeds" / "run_tags.yaml").warnings
    assert [warning.line for warning in warnings] == [4, 7]
    assert "no host sets this tag" in warnings[0].message


def test_five_faults_are_five_reports_with_their_lines() -> None:
    text = """\
concurrency:
  pools:
    default_limt: 1
    limits:
      database: -1
  runs:
    max_concurrent_runs: many
    tag_concurrency_limits:
      - {key: team, value: 5, limit: 1}
      - {key: team, limit: 1, limit: 2}
"""
    found = faults(text)
    assert [line for line, _ in found] == [3, 5, 7, 9, 10]
    assert "did you mean `default_limit`?" in found[0][1]
    assert "-1 found; at least 0 is expected" in found[1][1]
    assert "'many' found; a whole number is expected" in found[2][1]
    assert "5 found; text, or {applyLimitPerUniqueValue: true}, is expected" in found[3][1]
    assert "the key stands twice, first on line 10" in found[4][1]


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", 1, "empty"),
        ("# only a comment\n", 1, "empty"),
        ("- a\n", 1, "`concurrency:`, is expected"),
        ("concurrency: [\n", 2, "not YAML"),
        ("concurrency:\n\tpools: {}\n", 2, "a tab"),
        ("concurrency: {}\n---\nconcurrency: {}\n", 3, "second YAML document"),
        ("pools: {default_limit: 1}\n", 1, "lacks its first line `concurrency:`"),
        ("concurency: {}\n", 1, "did you mean `concurrency`?"),
        ("storage: {}\n", 1, "no `concurrency:` block"),
        ("concurrency: {}\nstorage: {}\n", 2, "storage: only a `concurrency:` block is read here"),
        ("concurrency: {pools: {default_limit: true}}\n", 1, "True found; a whole number is expected"),
        ("concurrency: {pools: {default_limit: 1.5}}\n", 1, "a whole number is expected"),
        ("concurrency: {pools: {default_limit: 10001}}\n", 1, "at most 10000"),
        ("concurrency: {pools: {granularity: asset}}\n", 1, "'op' or 'run' is expected"),
        ("concurrency: {pools: {limits: {'a b': 1}}}\n", 1, "whitespace"),
        ("concurrency: {pools: {limits: {'a:3': 1}}}\n", 1, "cannot end in `:digits`"),
        ("concurrency: {runs: {max_concurrent_runs: -2}}\n", 1, "at least -1"),
        ("concurrency: {runs: {tag_concurrency_limits: [{key: a}]}}\n", 1, "limit: is missing"),
        ("concurrency: {runs: {tag_concurrency_limits: {key: a}}}\n", 1, "a list is expected"),
        (
            "concurrency:\n  runs:\n    tag_concurrency_limits:\n    - {key: a, limit: 1}\n    - {key: a, limit: 2}\n",
            5,
            "two rules for the same tag 'a'",
        ),
        (
            "concurrency:\n runs: {tag_concurrency_limits: [{key: a, limit: 1, value: {applyLimitPerUniqueValue: 0}}]}",
            2,
            "true is expected",
        ),
        ("concurrency: {default_op_concurrency_limit: 1, pools: {default_limit: 2}}\n", 1, "contradicts"),
        ("concurrency: 5\n", 1, "a block of keys is expected"),
    ],
)
def test_bad_input_is_named_with_its_line(text: str, line: int, says: str) -> None:
    (fault,) = faults(text)
    assert fault[0] == line
    assert says in fault[1]


@pytest.mark.parametrize(
    "scalar",
    ["0b_", "!!int x", "!!bool maybe", "!!binary é", "!odd x", "0x" + "f" * 6000],
)
def test_a_scalar_that_yaml_makes_nothing_of_is_a_fault(scalar: str) -> None:
    (fault,) = faults(f"concurrency:\n  pools:\n    default_limit: {scalar}\n")
    assert fault[0] == 3
    assert "that can be read" in fault[1]


def test_a_date_is_text_as_it_is_in_dagster() -> None:
    rule = "{key: partition, value: 2024-01-31, limit: 1}"
    block = f"concurrency:\n  runs:\n    tag_concurrency_limits:\n      - {rule}\n"
    assert read(block).concurrency.runs.tag_concurrency_limits[0].value == "2024-01-31"
    assert faults("concurrency:\n  pools:\n    default_limit: 2024-13-45\n") == [
        (3, "concurrency.pools.default_limit: '2024-13-45' found; a whole number is expected")
    ]


def test_a_character_that_yaml_forbids_and_merge_keys_are_named_with_their_line() -> None:
    assert faults("concurrency:\n  pools:\n    x\0: 1\n") == [
        (3, ": not YAML: the character '\\x00' is not allowed; take it out")
    ]
    ((line, message),) = faults("concurrency:\n  pools: &p {default_limit: 1}\n  runs: {<<: *p}\n")
    assert line == 3
    assert "merge keys" in message


@pytest.mark.parametrize("word", ["str", "PerUniqueValue", "[key]", "value"])
def test_names_that_the_model_uses_itself_are_names_like_others(word: str) -> None:
    ((line, message),) = faults(f"concurrency:\n  pools:\n    limits:\n      a: 1\n      '{word}': -1\n")
    assert line == 5
    assert f"pools.limits.{word}" in message
    for value in ("5", "{}"):
        ((line, message),) = faults(f"concurrency:\n  pools: {{}}\n  '{word}': {value}\n")
        assert line == 3
        assert "no such key" in message


def test_every_rule_that_stands_twice_is_named_beside_other_faults() -> None:
    text = "concurrency:\n  runs:\n    tag_concurrency_limits:\n"
    for key, limit in (("a", "1"), ("a", "1"), ("b", "1"), ("b", "x")):
        text += f"    - {{key: {key}, limit: {limit}}}\n"
    assert [line for line, _ in faults(text)] == [5, 7, 7]


def test_an_alias_bomb_is_refused() -> None:
    text = "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
    for name, inner in zip("bcdefgh", "abcdefg", strict=True):
        text += f"{name}: &{name} [{','.join(['*' + inner] * 10)}]\n"
    ((_, message),) = faults(text + "concurrency: {}\n")
    assert "aliases counted" in message


def test_a_huge_file_and_one_that_is_no_text_are_refused(tmp_path: Path) -> None:
    ((_, message),) = faults("#" * 1_000_001)
    assert "is refused" in message
    path = tmp_path / "x.yaml"
    path.write_bytes(b"concurrency:\n  pools: {limits: {\xff: 1}}\n")
    with pytest.raises(ConfigError, match="line 2: not UTF-8"):
        read_file(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_file(tmp_path / "absent.yaml")


def test_a_byte_order_mark_and_empty_blocks_are_taken() -> None:
    assert read("\ufeffconcurrency:\n").concurrency == Concurrency()
    text = "concurrency:\n  pools:\n    limits:\n  runs:\n    tag_concurrency_limits:\n  ops:\n"
    assert read(text).concurrency == Concurrency()


def test_the_old_word_for_the_default_is_taken_with_a_warning() -> None:
    done = read("concurrency:\n  default_op_concurrency_limit: 2\n")
    assert done.concurrency.pools.default_limit == 2
    assert [(w.line, "deprecated" in w.message) for w in done.warnings] == [(2, True)]


@pytest.mark.parametrize(
    ("block", "limit"),
    [
        ("{default_op_concurrency_limit: 1, pools: {default_limit: }}", 1),
        ("{default_op_concurrency_limit: , pools: {default_limit: 2}}", 2),
        ("{default_op_concurrency_limit: 3, pools: {default_limit: 3}}", 3),
        ("{default_op_concurrency_limit: 4, pools: }", 4),
    ],
)
def test_the_old_word_and_the_new_one_agree_when_one_is_empty(block: str, limit: int) -> None:
    assert read(f"concurrency: {block}\n").concurrency.pools.default_limit == limit


SCALARS = st.sampled_from(["1", "x", "-1", "true", "", "~", "=", "<<", "1:2", "!!int q", "[a]", "{a: 1}", "&a b", "*a"])
KEYS = st.sampled_from(
    [
        "concurrency",
        "pools",
        "runs",
        "ops",
        "limits",
        "default_limit",
        "tag_concurrency_limits",
        "key",
        "str",
        "<<",
        "1",
    ]
)


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans(), KEYS, SCALARS), max_size=8))
def test_anything_like_a_configuration_is_read_or_named_faulty(
    rows: list[tuple[int, bool, str, str]],
) -> None:
    text = "concurrency:\n"
    for depth, item, key, value in rows:
        text += f"{'  ' * depth}{'- ' if item else ''}{key}: {value}\n"
    try:
        read(text)
    except ConfigError as error:
        assert error.faults  # noqa: PT017  # either outcome is right


@given(st.text(max_size=200))
def test_any_text_is_read_or_named_faulty(text: str) -> None:
    for candidate in (text, "concurrency:\n  pools:\n    limits:\n      " + text):
        try:
            read(candidate)
        except ConfigError as error:
            assert error.faults  # noqa: PT017  # either outcome is right


def test_dagsters_long_way_to_leave_a_value_out_is_read_as_that() -> None:
    """`applyLimitPerUniqueValue: false` was refused, though a block copied from dagster.yaml is to work unchanged."""
    rule = "    - {key: a, limit: 1, value: {applyLimitPerUniqueValue: false}}\n"
    text = f"concurrency:\n  runs:\n    tag_concurrency_limits:\n{rule}"
    assert read(text).concurrency.runs.tag_concurrency_limits[0].value is None
    ((line, message),) = faults(text + "    - {key: a, limit: 2}\n")
    assert line == 5
    assert "two rules for the same tag 'a'" in message
