"""Whatever a file or an argument is: an answer or a clear refusal, never a traceback, in bounded time.

With `PENSTOCK_TEST_EXAMPLES=10000` so many of each are tried, others each time; without it few, and always the same.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import click
import pytest
from hostile import TEXTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pages_read import COMING, CONFIGURATION, blocks
from penstock.cli import COMMANDS, main
from penstock.cli import penstock as group
from penstock.config_file import read_file
from penstock.errors import ConfigError, PenstockError
from penstock.hooks import installed_plugins

EXAMPLES = int(os.environ.get("PENSTOCK_TEST_EXAMPLES", "0"))
SECONDS = 20.0
"""Of this process's own time: what others do on the machine does not count."""
VALID = [*blocks(CONFIGURATION, "yaml"), *blocks(COMING, "yaml")]
EXPORTS = [
    json.dumps({"a": {"slots": 3, "description": "d", "include_deferred": True}}),
    json.dumps([{"name": "l", "limit": 2, "active": True, "slot_decay_per_second": 0.0, "active_slots": 0}]),
]


def fuzzed(examples: int) -> Any:
    """A test of so many examples."""
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


KEYS = (
    "concurrency: pools: limits: runs: ops: default_limit: tag_concurrency_limits: key: value: max_concurrent_runs: "
    "applyLimitPerUniqueValue: run_queue: default_op_concurrency_limit:"
)
MARKS = [
    "\n",
    "\n  ",
    "\n    ",
    "- ",
    "? ",
    ": ",
    ", ",
    "{",
    "}",
    "[",
    "]",
    "'",
    '"',
    "\t",
    "#",
    "|\n",
    ">-\n",
    "---\n",
]
ODD = [
    "&a ",
    "*a",
    "<<: *a",
    "!!int ",
    "!!python/object:os.system ",
    "!!binary ",
    "...\n",
    "%YAML 1.1\n",
    "\ufeff",
    "\x85",
]
SCALARS = "0 -1 1_000 0x7f 0o7 1e400 .inf .nan ~ null true 2024-13-45 1:2:3"
TOKENS = st.sampled_from(
    [*KEYS.split(), *MARKS, *ODD, *SCALARS.split(), "9" * 5000, "\u2028", "\x00", "é", *TEXTS.values()]
)
DOCUMENTS = st.lists(TOKENS, max_size=25).map("".join)


@st.composite
def mutated(draw: st.DrawFn, sources: list[str]) -> str:
    """A valid text with some lines or characters doubled, moved, lost or replaced."""
    text = draw(st.sampled_from(sources))
    for _ in range(draw(st.integers(1, 4))):
        lines = text.splitlines(keepends=True) or [""]
        at = draw(st.integers(0, len(lines) - 1))
        match draw(st.integers(0, 4)):
            case 0:
                lines.insert(draw(st.integers(0, len(lines))), lines[at])
            case 1:
                lines.pop(at)
            case 2:
                lines[at] = draw(TOKENS) + lines[at]
            case 3:
                cut = draw(st.integers(0, len(lines[at])))
                lines[at] = lines[at][:cut] + draw(TOKENS) + lines[at][cut + 1 :]
            case 4:
                lines[at] = " " * draw(st.integers(0, 6)) + lines[at].lstrip()
        text = "".join(lines)
    return text


CONTENTS = st.one_of(
    st.binary(max_size=200),
    *(
        texts.map(lambda text: text.encode(errors="surrogatepass"))
        for texts in (DOCUMENTS, mutated(VALID), mutated(EXPORTS))
    ),
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file to be read."""
    return tmp_path_factory.mktemp("fuzzing") / "penstock.yaml"


@fuzzed(600)
@given(CONTENTS)
def test_any_file_is_a_configuration_or_its_faults(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        concurrency = read_file(path).concurrency
    except ConfigError:
        return
    assert type(concurrency).from_document(json.loads(json.dumps(concurrency.document()))) == concurrency


@pytest.mark.parametrize("kind", ["dagster", "airflow-pools", "prefect-limits"])
def test_any_file_is_imported_or_refused(kind: str, path: Path) -> None:
    take = installed_plugins().hook.penstock_import_configuration

    @fuzzed(250)
    @given(CONTENTS)
    def run(content: bytes) -> None:
        path.write_bytes(content)
        with contextlib.suppress(PenstockError):
            assert take(kind=kind, source=str(path), options={}) is not None

    run()


DEEP = 200_000
BOMBS = {
    "laughs": "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60)),
    "itself": "concurrency: &a {pools: *a}",
    "flow sequences": "[" * DEEP,
    "flow mappings": "{a: " * DEEP,
    "block sequences": "- " * DEEP,
    "keys": "? " * DEEP,
    "indents": "".join(" " * n + "a:\n" for n in range(1300)),
    "anchors": "".join(f"a{n}: &a{n} 1\n" for n in range(30_000)),
    "tags": "!!str " * DEEP,
    "digits": "concurrency: {pools: {default_limit: " + "9" * 500_000 + "}}",
    "exponent": "concurrency: {pools: {default_limit: 1e99999999}}",
    "sexagesimal": "concurrency: {pools: {default_limit: 1" + ":59" * 30 + "}}",
    "one scalar": "concurrency: " + "x" * 900_000,
    "quoted": 'concurrency: "' + "\\U0001F600" * 80_000 + '"',
    "rules": "concurrency: {runs: {tag_concurrency_limits: [" + "{key: a, limit: 1}, " * 12_000 + "]}}",
    "doubled keys": "concurrency:\n" + "  pools: {}\n" * 20_000,
    "unknown keys": "concurrency: {" + "".join(f"k{n}: 1, " for n in range(20_000)) + "}",
    "documents": "---\n" * 100_000,
    "comments": "#\n" * 450_000,
    "too long": "a: 1\n" * 300_000,
}


@pytest.mark.parametrize("kind", ["penstock", "dagster"])
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused_in_bounded_time(bomb: str, kind: str, path: Path) -> None:
    path.write_text(bomb)
    began = time.process_time()
    if kind == "penstock":
        with pytest.raises(ConfigError) as refused:
            read_file(path)
        assert len(str(refused.value)) < 10_000_000
    else:
        with contextlib.suppress(PenstockError):
            installed_plugins().hook.penstock_import_configuration(kind=kind, source=str(path), options={})
    assert time.process_time() - began < SECONDS


# -- the command line -------------------------------------------------------------------------------------------------

CODES = {0, 1, 2, 3, 69, 75, 76, 126, 127}


def options(command: click.Command) -> list[str]:
    """Every option that it or one below it has."""
    names = [name for parameter in command.params for name in parameter.opts if name.startswith("-")]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            names += [name, *options(below)]
    return names


HARMLESS = sorted({word for word in options(group) if word not in ("demo", "--interval", "-o", "--output")})
# A NUL is in no argument; what begins with a slash or is a URL could lead out of the test's folder.
TYPED = [text for text in TEXTS.values() if "\x00" not in text]
VALUES = st.one_of(
    st.sampled_from(
        ["a", "b:2", "k=v", "run_tag:k=*", "pool:a", "runs", "0", "1", "-1", "nan", "inf", "1e9", "9" * 5000]
    ),
    st.sampled_from(
        ["penstock.yaml", "pools.json", ".", "", "-", "bash", "wait", "json", "oracle://x", "mysql://", "sqlite://"]
    ),
    st.sampled_from(TYPED),
    st.text(st.characters(exclude_characters="\x00/", max_codepoint=0x2FFF), max_size=20),
    st.binary(min_size=1, max_size=6).map(
        lambda raw: raw.replace(b"\x00", b"").replace(b"/", b"").decode("utf-8", "surrogateescape")
    ),
)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with files, and a store in it."""
    folder = tmp_path_factory.mktemp("typed")
    (folder / "penstock.yaml").write_text(VALID[0])
    (folder / "pools.json").write_text(EXPORTS[0])
    with contextlib.chdir(folder), mock.patch.dict(os.environ, {"PENSTOCK_STORE_URL": f"sqlite:///{folder}/p.db"}):
        yield folder


def typed(words: list[str]) -> tuple[int, str]:
    """Exit code and stderr of the command line, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "stdin", io.StringIO()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main(words)
    code = ended.value.code
    return int(code or 0), err.getvalue()


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"demo", "run"}))
@pytest.mark.usefixtures("here")
def test_whatever_is_typed_ends_with_a_code_of_the_page(name: str) -> None:
    @fuzzed(40)
    @given(st.lists(st.one_of(st.sampled_from(HARMLESS), VALUES), max_size=6))
    def run(words: list[str]) -> None:
        code, said = typed([name, *words, *(["--once"] if name == "janitor" else [])])
        assert code in CODES, (code, said)
        assert "Traceback" not in said

    with mock.patch("uvicorn.Server.run"):  # `ui` would serve until it is told to stop
        run()


@fuzzed(40)
@given(
    st.lists(
        st.tuples(st.sampled_from(["--pool", "--tag", "--run-id", "--run-tag", "--op-id", "--priority"]), VALUES),
        max_size=4,
    )
)
@pytest.mark.usefixtures("here")
def test_whatever_is_asked_of_run_ends_with_a_code_of_the_page(pairs: list[tuple[str, str]]) -> None:
    code, said = typed(["run", "--wait-timeout", "0", *(word for pair in pairs for word in pair), "--", "true"])
    assert code in CODES, (code, said)
    assert "Traceback" not in said
