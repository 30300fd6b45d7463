"""Pools, op tags and executors out of Python's syntax trees, and whatever can stand in a folder of Python files."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from penstock.cli import main
from penstock.errors import ConfigError
from penstock_plugins.dagster.code import read
from penstock_plugins.dagster.code_report import CodeReport, Finding, Runs

HERE = Path(__file__).parent
HEAD = "import dagster as dg\n"


def of(folder: Path, **files: str) -> CodeReport:
    """The report on these files; `a__b` is a/b.py."""
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return read(folder)


def pools(report: CodeReport) -> dict[str, tuple[str, ...]]:
    return {row.name: row.pools for row in report.definitions}


def unread(report: CodeReport) -> list[tuple[int | None, str]]:
    return [(each.line, each.reason) for each in report.findings if each.kind == "unread"]


def found(report: CodeReport, kind: str) -> list[Finding]:
    return [each for each in report.findings if each.kind == kind]


# -- the documents -----------------------------------------------------------------------------------------------------


def test_the_examples_of_dagsters_documents() -> None:
    report = read(HERE / "documents")
    read_pools = pools(report)
    assert read_pools["my_asset"] == ("foo",)
    assert read_pools["my_graph_asset"] == ("bar", "barbar")
    assert read_pools["my_group/my_asset"] == ("my_group_my_asset",)
    runs = {row.name: row for row in report.runs}
    assert runs["at_most_two"].max_concurrent == 2
    assert [dict(rule) for rule in runs["tagged"].tag_concurrency_limits] == [
        {"key": "database", "value": "warehouse", "limit": 1},
        {"key": "api", "limit": 2},
    ]
    assert runs["my_job"].bound == "cpu_count"
    rows = {(row.file, row.name): row for row in report.definitions}
    tagged = rows["concurrency_controls/tag_concurrency.py", "read_one"]
    assert tagged.within_run == ("database=warehouse: 1",)
    assert tagged.airflow == '@limited(tags={"database": "warehouse"})'
    assert tagged.prefect == '@limited @task(tags=["database:warehouse"])'
    # What gives all assets their pools as it runs is named: the table does not have these.
    assert [each for each in found(report, "unread") if "OpDefinition" in each.subject or "_add_pool" in each.reason]


# -- names and values --------------------------------------------------------------------------------------------------

VALUES = {
    '"plain"': "plain",
    "NAME": "database",
    'f"{NAME}_{NUMBER}"': "database_2",
    'NAME + "_" + REGION': "database_eu",
    '"_".join([NAME, REGION])': "database_eu",
    'POOLS["main"]': "main_pool",
    "LIST[1]": "second",
    "Names.API": "api",
    "Names.BOTH": "api_eu",
    "other.ELSEWHERE": "elsewhere",
    "ELSEWHERE": "elsewhere",
    "package.inner.DEEP": "deep",
}


@pytest.mark.parametrize("expression", VALUES)
def test_values_that_are_written_down(tmp_path: Path, expression: str) -> None:
    text = f"""
import dagster as dg
from . import other, package
from .other import *
from .other import REGION
NAME: str = "database"
NUMBER = 2
POOLS = {{"main": "main" + "_pool"}}
LIST = ["first", "second"]
class Names:
    API = "api"
    BOTH = API + "_" + REGION
@dg.asset(pool={expression})
def it(): ...
"""
    other = 'ELSEWHERE = "elsewhere"\nREGION = "eu"\n'
    report = of(
        tmp_path, shop__assets=text, shop__other=other, shop__package__inner='DEEP = "deep"\n', shop____init__=""
    )
    (tmp_path / "shop" / "package" / "__init__.py").write_text("from . import inner\n")
    report = read(tmp_path)
    assert pools(report)["it"] == (VALUES[expression],), unread(report)


UNKNOWN = {
    'os.environ["POOL"]': "the environment gives it",
    'os.getenv("POOL", "x")': "`os.getenv()`: the environment gives it",
    "work_out()": "`work_out()` works it out when the code runs",
    '"a" if NAME else "b"': "a choice (`if`) is worked out when the code runs",
    "TWICE": "`TWICE` is bound more than once (lines 4, 5)",
    "CHANGED[0]": "`CHANGED` is changed after it was bound on line 6",
    "SOMETIMES": "`SOMETIMES` is bound on line 8, and it is under the `if` on line 7",
    "ROUND": "the names lead in a circle",
    "external.POOL": "`external.POOL` is not defined below PATH",
    "NAME[99]": "nothing is at [99]",
    "BOMB": "it is too long",
    "UNFOLDING": "it is too large, or nested too deeply",
    'f"{NAME:>10000000000}"': "an f-string formats something",
    "missing": "`builtins.missing` is not defined below PATH",
}


@pytest.mark.parametrize("expression", UNKNOWN)
def test_values_that_only_the_running_code_knows_are_listed(tmp_path: Path, expression: str) -> None:
    unfolded = "\n".join(f"U{n} = [U{n - 1}, U{n - 1}]" for n in range(1, 40))
    text = f"""import dagster as dg, os, external
NAME = "x"
def work_out(): return "y"
TWICE = "a"
TWICE = "b"
CHANGED = ["a"]; CHANGED.append("b")
if NAME:
    SOMETIMES = "s"
ROUND = SQUARE
SQUARE = ROUND
LONG = {"x" * 6000!r}
BOMB = LONG + LONG
U0 = ["u"]
{unfolded}
UNFOLDING = U39
@dg.asset(pool={expression})
def it(): ...
"""
    report = of(tmp_path, assets=text)
    (row,) = report.definitions
    assert row.unread == ("pool",)
    assert row.airflow is None
    line = text.splitlines().index("def it(): ...") + 1
    assert unread(report) == [(line, UNKNOWN[expression])]


def test_names_of_dagster_by_any_way_of_importing_it(tmp_path: Path) -> None:
    text = """
import dagster, dagster as dg, functools
from dagster import asset as a, op
from dagster import *
import dagster._core.definitions.decorators.asset_decorator as inside
mine = dg.asset
pooled = functools.partial(op, pool="partial")
with_pool = dg.op(pool="named")
@dagster.asset(pool="p1")
def one(): ...
@a(pool="p2")
def two(): ...
@inside.asset(pool="p3")
def three(): ...
@mine(pool="p4")
def four(): ...
@pooled(name="five")
def _(): ...
@with_pool
def six(): ...
@multi_asset(pool="p7", specs=[])
def seven(): ...
@a
def bare(): ...
@property
def nothing(): ...
"""
    assert pools(of(tmp_path, assets=text)) == {
        "one": ("p1",),
        "two": ("p2",),
        "three": ("p3",),
        "four": ("p4",),
        "five": ("partial",),
        "six": ("named",),
        "seven": ("p7",),
        "bare": (),
    }


def test_a_wrapper_of_the_project_is_found_where_it_is_imported_from(tmp_path: Path) -> None:
    base = "from dagster import asset as base_asset\nfrom dagster import op as step\n"
    text = 'from shop.base import base_asset\n@base_asset(pool="p")\ndef it(): ...\n'
    assert pools(of(tmp_path, shop__base=base, shop__assets=text)) == {"it": ("p",)}


def test_what_other_packages_of_dagsters_make_is_read(tmp_path: Path) -> None:
    text = "from dagster_dbt import dbt_assets\n"
    text += '@dbt_assets(manifest="m", pool="warehouse", op_tags={"a": "b"})\ndef models(): ...\n'
    (row,) = of(tmp_path, assets=text).definitions
    assert (row.kind, row.name, row.pools, row.op_tags) == ("multi_asset", "models", ("warehouse",), {"a": "b"})


def test_weights_of_newer_dagsters_are_slots(tmp_path: Path) -> None:
    text = (
        "@dg.asset(pool='database', pool_slots=3)\ndef it(): ...\n@dg.op(pool='p', pool_slots=f())\ndef other(): ...\n"
    )
    it, other = of(tmp_path, assets=HEAD + text).definitions
    assert (it.slots, it.airflow) == (3, '@limited("database:3")')
    assert other.unread == ("slots",)


def test_a_wrapper_is_found_though_the_file_never_names_dagster(tmp_path: Path) -> None:
    base = "from dagster import asset as base_asset\n"
    again = "from .base import base_asset as renamed\n"
    text = 'from shop import again\n@again.renamed(pool="p")\ndef it(): ...\n'
    assert pools(of(tmp_path, shop__base=base, shop__again=again, shop__assets=text)) == {"it": ("p",)}


# -- what is surely there ----------------------------------------------------------------------------------------------

UNSURE = {
    "for x in [1, 2]:\n    @dg.asset(pool='p')\n    def it(): ...\n": "it is in the loop on line 2",
    "while True:\n    @dg.asset(pool='p')\n    def it(): ...\n": "it is in the loop on line 2",
    "if x:\n    @dg.asset(pool='p')\n    def it(): ...\n": "it is under the `if` on line 2",
    "if x: ...\nelse:\n    @dg.asset(pool='p')\n    def it(): ...\n": "it is under the `else` of line 2",
    "try:\n    @dg.asset(pool='p')\n    def it(): ...\nexcept E: ...\n": "it is in the `try` on line 2",
    "def f(p):\n    @dg.op(pool='p')\n    def it(): ...\n": "it is in f, which may be run never or more than once",
    "class C:\n    @dg.op(pool='p')\n    def it(): ...\n": "it is in C, which may be run never or more than once",
    "ops = [dg.op(pool=p)(f) for p in 'ab']\n": "it is in the comprehension on line 2",
    "match x:\n    case 1:\n        @dg.asset(pool='p')\n        def it(): ...\n": "it is under the `match` on line 2",
}


@pytest.mark.parametrize("text", UNSURE)
def test_what_may_be_defined_never_or_many_times_is_listed_and_not_in_the_table(tmp_path: Path, text: str) -> None:
    report = of(tmp_path, assets=HEAD + text)
    assert not report.definitions
    assert UNSURE[text] in [reason for _, reason in unread(report)]


def test_functions_that_dagster_runs_once_are_read_as_a_module_is(tmp_path: Path) -> None:
    text = """
@dg.definitions
def defs():
    @dg.asset(pool="p")
    def it(): ...
    return dg.Definitions(assets=[it], executor=dg.multiprocess_executor.configured({"max_concurrent": 3}))
"""
    report = of(tmp_path, definitions=HEAD + text)
    assert pools(report) == {"it": ("p",)}
    assert [(row.kind, row.max_concurrent) for row in report.runs] == [("code location", 3)]


# -- what Dagster ignores or refuses -----------------------------------------------------------------------------------

SAID = {
    "@dg.asset(tags={'dagster/concurrency_key': 'x'})\ndef it(): ...\n": ("ignored", "these are the asset's tags"),
    "dg.AssetSpec('k', tags={'dagster/concurrency_key': 'x'})\n": ("ignored", "these are the asset's tags"),
    "@dg.job(tags={'dagster/concurrency_key': 'x'})\ndef it(): ...\n": ("ignored", "it counts on ops alone"),
    "@dg.job(tags={'a': 'b'}, run_tags={})\ndef it(): ...\n": ("ignored", "its runs have those of `run_tags=` alone"),
    "@dg.sensor(tags={'a': 'b'})\ndef it(): ...\n": ("ignored", "they tag the sensor"),
    "@dg.graph_asset(pool='p')\ndef it(): ...\n": ("refused", "it takes none; name it on the ops"),
    "@dg.job(pool='p')\ndef it(): ...\n": ("refused", "it takes none; name it on the ops"),
    "@dg.asset(pool='a b')\ndef it(): ...\n": ("refused", "no white space"),
    "@dg.op(pool='a', tags={'dagster/concurrency_key': 'b'})\ndef it(): ...\n": ("refused", "says 'b'"),
    "@dg.op(pool=5)\ndef it(): ...\n": ("refused", "a pool is named by a text"),
    "@dg.op(pool='db:2')\ndef it(): ...\n": ("differs", "cannot end in `:digits`"),
}


@pytest.mark.parametrize("text", SAID)
def test_what_has_no_effect_is_refused_or_has_no_counterpart_is_said(tmp_path: Path, text: str) -> None:
    kind, reason = SAID[text]
    report = of(tmp_path, assets=HEAD + text)
    assert any(reason in each.reason for each in found(report, kind)), report.findings


def executor(rules: str) -> str:
    configured = f"dg.multiprocess_executor.configured({{'tag_concurrency_limits': [{rules}]}})"
    return f"e = {configured}\nd = dg.Definitions(executor=e)\n"


def test_rules_of_executors_that_nothing_matches_are_said(tmp_path: Path) -> None:
    rules = "{'key': 'a', 'limit': 1}, {'key': 'b', 'limit': 2}, {'key': 'c', 'limit': 3}, {'key': 'c', 'limit': 4}"
    text = (
        executor(rules)
        + "@dg.asset(tags={'a': 'x'}, op_tags={'c': 'y'})\ndef it(): ...\n@dg.job(tags={'b': 'x'})\ndef j(): ...\n"
    )
    report = of(tmp_path, assets=HEAD + text)
    said = {(each.line, each.subject): each.reason for each in found(report, "ignored")}
    assert said[5, "a in `tags=` of asset"] == "an executor's rule looks at op tags: `op_tags=`"
    assert "among run tags it stands in vain" in said[3, "the rule b: 2 of code location Definitions"]
    assert "Dagster takes the last" in said[3, "the rule c: 3"]
    assert report.definitions[0].within_run == ("CPU count at once", "c: 4")


def test_run_tag_rules_that_only_ops_and_assets_would_match_are_said(tmp_path: Path) -> None:
    text = "@dg.asset(op_tags={'team': 'x'}, tags={'area': 'x'})\ndef it(): ...\n"
    text += "@dg.job(tags={'of': 'run'})\ndef j(): ...\n"
    (tmp_path / "assets.py").write_text(HEAD + text)
    said = [(each.line, each.subject) for each in found(read(tmp_path, ["team", "area", "of"]), "ignored")]
    assert said == [(3, "area in `tags=` of asset"), (3, "the op tag team of asset it")]


# -- runs --------------------------------------------------------------------------------------------------------------

BOUNDS = {
    "@dg.job\ndef j(): ...\n": ("cpu_count", None),
    "@dg.job(executor_def=dg.in_process_executor)\ndef j(): ...\n": ("set", 1),
    "@dg.job(executor_def=dg.multiprocess_executor)\ndef j(): ...\n": ("cpu_count", None),
    "@dg.job(executor_def=dg.multiprocess_executor.configured({'max_concurrent': 0}))\ndef j(): ...\n": (
        "cpu_count",
        None,
    ),
    "from dagster_k8s import k8s_job_executor as k\n@dg.job(executor_def=k)\ndef j(): ...\n": ("unlimited", None),
    "from dagster_k8s import k8s_job_executor as k\nx = k.configured({'max_concurrent': 7})\n"
    "@dg.job(executor_def=x)\ndef j(): ...\n": ("set", 7),
    "@dg.job(config={'execution': {'config': {'multiprocess': {'max_concurrent': 5}}}})\ndef j(): ...\n": ("set", 5),
    "@dg.job(config=dg.RunConfig(execution={'config': {'in_process': None}}))\ndef j(): ...\n": ("set", 1),
    "@dg.job(config=make())\ndef j(): ...\n": ("unread", None),
    "@dg.executor\ndef own(): ...\n@dg.job(executor_def=own)\ndef j(): ...\n": ("unread", None),
    "@dg.job(**given)\ndef j(): ...\n": ("unread", None),
}


@pytest.mark.parametrize("text", BOUNDS)
def test_how_many_ops_of_a_run_execute_at_once(tmp_path: Path, text: str) -> None:
    report = of(tmp_path, jobs=HEAD + text)
    rows = [row for row in report.runs if row.kind == "job"]
    if "given" in text:  # its name is not known either
        assert not rows
        assert unread(report)
        return
    assert [(row.bound, row.max_concurrent) for row in rows] == [BOUNDS[text]]
    assert bool(unread(report)) == (BOUNDS[text][0] == "unread")


def test_jobs_take_the_executor_of_the_code_location_that_names_them(tmp_path: Path) -> None:
    text = """
@dg.job
def one(): ...
@dg.job
def other(): ...
a = dg.Definitions(jobs=[one], executor=dg.multiprocess_executor.configured({"max_concurrent": 2}))
b = dg.Definitions(jobs=[other], executor=dg.in_process_executor)
"""
    rows = {row.name: row for row in of(tmp_path, jobs=HEAD + text).runs if row.kind == "job"}
    assert (rows["one"].max_concurrent, rows["other"].max_concurrent) == (2, 1)
    assert rows["one"].airflow == "@limited(max_concurrent=2)"


# -- lines for the hosts -----------------------------------------------------------------------------------------------


def test_each_word_of_a_line_is_one_of_the_hosts() -> None:
    """Neither host can be imported here; what their `limited` takes is in their source."""
    report = read(HERE / "project")
    lines = [row.airflow for row in (*report.definitions, *report.runs) if row.airflow and "@limited" in row.airflow]
    assert len(lines) > 20
    root = HERE.parents[2]
    source = (root / "airflow_provider" / "penstock_airflow" / "authoring.py").read_text()
    for line in lines:
        for word in ("tags", "priority", "max_concurrent", "tag_concurrency_limits"):
            if f"{word}=" in line:
                assert f"\n    {word}:" in source
        compile(line.removeprefix("@"), "line", "eval")


def test_bounds_that_all_jobs_have_are_the_configurations(tmp_path: Path) -> None:
    text = "@dg.job\ndef j(): ...\ne = dg.multiprocess_executor.configured({'max_concurrent': 3})\n"
    text += "d = dg.Definitions(executor=e)\n"
    rows: dict[str, Runs] = {row.kind: row for row in of(tmp_path, jobs=HEAD + text).runs}
    assert rows["code location"].airflow == rows["code location"].prefect == "ops: {max_concurrent: 3}"
    assert rows["job"].inherited
    assert rows["job"].airflow is None


# -- folders of anything -----------------------------------------------------------------------------------------------

GOOD = HEAD + "@dg.asset(pool='p')\ndef good(): ...\n"
NEW_PYTHON = b"def f[T](x: T) -> T: return x\n" if sys.version_info < (3, 12) else b"type x y z\n"
BAD = {
    "syntax.py": (b"def broken(:\n", 1, "cannot parse it: "),
    "newer.py": (b"x = 1\n" + NEW_PYTHON, 2, "run penstock under that one"),
    "nul.py": (b"x = 1\0\n", None, "null bytes"),
    "not_utf8.py": (b"x = '\xe9'\n", None, "cannot parse it: "),
    "unknown_coding.py": (b"# -*- coding: klingon -*-\nx = 1\n", None, "unknown encoding"),
    "deep.py": (b"x = " + b"(" * 5000 + b")" * 5000 + b"\n", None, ""),
    "deeper.py": (b"x = " + b"-" * 100_000 + b"1\n", None, ""),
    "huge.py": (b"x = 1\n" * 1_000_000, None, "larger than 4 MB"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_read_is_named_and_the_others_are_read(tmp_path: Path, name: str) -> None:
    content, line, reason = BAD[name]
    (tmp_path / name).write_bytes(content)
    report = of(tmp_path, good=GOOD)
    assert pools(report) == {"good": ("p",)}
    (finding,) = report.findings
    assert (finding.kind, finding.file, finding.subject) == ("unread", name, "the whole file")
    assert reason in finding.reason
    assert line is None or finding.line == line


def test_encodings_that_python_reads_are_read(tmp_path: Path) -> None:
    (tmp_path / "bom.py").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    latin = "# -*- coding: latin-1 -*-\n" + HEAD + "@dg.asset(pool='caf\xe9')\ndef latin(): ...\n"
    (tmp_path / "latin.py").write_bytes(latin.encode("latin-1"))
    (tmp_path / "crlf.py").write_bytes((HEAD + "@dg.op(pool='r')\ndef crlf(): ...\n").replace("\n", "\r\n").encode())
    assert pools(read(tmp_path)) == {"good": ("p",), "latin": ("caf\xe9",), "crlf": ("r",)}


def test_long_chains_of_statements_and_sums_end(tmp_path: Path) -> None:
    chain = "if a: pass\n" + "elif b: pass\n" * 900
    total = "TOTAL = " + " + ".join(['"x"'] * 900) + "\n"
    report = of(tmp_path, good=GOOD, chain=HEAD + chain + total + "@dg.op(pool=TOTAL)\ndef it(): ...\n")
    assert pools(report) == {"good": ("p",), "it": ()}
    assert [reason for _, reason in unread(report)] == ["it is too large, or nested too deeply"]


def test_links_folders_of_others_and_odd_files(tmp_path: Path) -> None:
    report = of(tmp_path, shop__good=GOOD)
    (tmp_path / "shop" / "again").symlink_to(tmp_path)
    (tmp_path / "shop" / "round.py").symlink_to("round.py")
    (tmp_path / "shop" / "gone.py").symlink_to("nowhere.py")
    os.mkfifo(tmp_path / "shop" / "pipe.py")
    for folder in (".venv", "node_modules", "env", "__pycache__"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "other.py").write_text(GOOD.replace("good", "other"))
    (tmp_path / "env" / "pyvenv.cfg").write_text("")
    (tmp_path / "shop" / "defs.yaml").write_text("type: dagster_dbt.DbtProjectComponent\n")
    report = read(tmp_path)
    assert pools(report) == {"good": ("p",)}
    reasons = {each.file: each.reason for each in report.findings}
    assert reasons.keys() == {"shop/round.py", "shop/gone.py", "shop/pipe.py", "shop/defs.yaml"}
    assert "no regular file" in reasons["shop/pipe.py"]
    assert "look in it for `pool`" in reasons["shop/defs.yaml"]


def test_a_path_without_python_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no Python file below this folder"):
        read(tmp_path)
    with pytest.raises(ConfigError, match="No such file"):
        read(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="null byte"):
        read("a\0b")


def test_one_file_is_read_alone(tmp_path: Path) -> None:
    of(tmp_path, good=GOOD, other=GOOD.replace("good", "other"))
    assert pools(read(tmp_path / "good.py")) == {"good": ("p",)}


def test_nothing_is_run_or_imported(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    text = f"open({str(mark)!r}, 'w').close()\nimport this_is_not_there\n" + GOOD
    assert pools(of(tmp_path, side=text)) == {"good": ("p",)}
    assert not mark.exists()
    assert "dagster" not in sys.modules


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_shows_tables_and_gives_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dagster.yaml").write_text("concurrency: {pools: {default_limit: 1}}\n")
    of(tmp_path / "src", good=GOOD + "@dg.asset(pool=f())\ndef unknown(): ...\n")
    words = ["migrate", "dagster", str(tmp_path / "dagster.yaml"), "--code", str(tmp_path / "src"), "--yes"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "-o", str(tmp_path / "penstock.yaml")])
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert '@limited("p")' in shown
    assert "good.py:3" in shown
    assert "Not to be read without running the code: 1" in shown
    with pytest.raises(SystemExit):
        main([*words, "-o", str(tmp_path / "penstock.yaml"), "--json"])
    report = json.loads(capsys.readouterr().out)["report"]
    assert report["pools"] == ["p"]
    assert [row["unread"] for row in report["definitions"]] == [[], ["pool"]]
    assert report["findings"][0]["line"] == 5
    with pytest.raises(SystemExit) as ended:
        main([*words[:-2], str(tmp_path / "none"), "-o", str(tmp_path / "other.yaml")])
    assert ended.value.code == 1
    assert not (tmp_path / "other.yaml").exists()
    assert "Traceback" not in capsys.readouterr().err
