"""Shell completion: click's protocol in a real process, and a real bash; names and ids come from the store."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from servers import missing
from situations import CALM, Configure, NewEngine

Complete = Callable[..., list[str]]
BIN = Path(sys.executable).parent
on_sqlite = pytest.mark.parametrize("store_kind", ["sqlite"], indirect=True)
AWAY = "postgresql://u:secret@127.0.0.1:1/x"


def completions(*words: str, url: str, shell: str = "bash") -> list[str]:
    """What the shell would offer for the last of the words."""
    environment = os.environ | {"_PENSTOCK_COMPLETE": f"{shell}_complete", "PENSTOCK_STORE_URL": url}
    line = " ".join(["penstock", *words])
    if shell == "fish":
        environment |= {"COMP_WORDS": line, "COMP_CWORD": words[-1]}
    else:
        environment |= {"COMP_WORDS": line, "COMP_CWORD": str(len(words))}
    done = subprocess.run([BIN / "penstock"], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.split("\n")[:-1] if done.stdout.strip() else []


@pytest.mark.parametrize("store_kind", ["sqlite", "postgresql"], indirect=True)
def test_claims_runs_and_ops_of_the_store(new_engine: NewEngine, configure: Configure, store_url: str) -> None:
    configure(pools={"limits": {"db": 2}})
    engine = new_engine(settings=CALM)
    lease = engine.acquire(engine.claim("db", run_id="nightly-7", op_id="load"))
    offered = completions("explain", "", url=store_url)
    assert set(offered) >= {f"plain,{lease.claim_id}", "plain,nightly-7", "plain,load"}
    assert completions("free", "nigh", url=store_url) == ["plain,nightly-7"]
    assert completions("free", "--run", "", url=store_url) == ["plain,nightly-7"]


@on_sqlite
def test_every_shell_and_every_kind_of_name(new_engine: NewEngine, configure: Configure, store_url: str) -> None:
    configure(pools={"limits": {"db": 2}})
    engine = new_engine(settings=CALM, host="airflow", deployment="prod", fingerprint="https://a.example")
    engine.acquire(engine.claim("db", op_id="wicked\x1b[31m"))
    assert completions("comp", url=store_url) == ["plain,completion"]
    assert completions("completion", "", url=store_url) == ["plain,bash", "plain,zsh", "plain,fish"]
    assert completions("pools", "get", "", url=store_url) == ["plain,db"]
    assert completions("db", "forget", "", url=store_url) == ["plain,airflow/prod"]
    assert completions("pools", "get", "", url=store_url, shell="zsh") == ["plain", "db", "1 of 2 held, 0 wait"]
    (offered,) = completions("pools", "get", "d", url=store_url, shell="fish")
    assert offered.startswith("plain,db")
    assert not [line for line in completions("explain", "", url=store_url) if "wicked" in line]  # it would act


@on_sqlite
def test_a_store_that_does_not_answer_is_silence(tmp_path: Path, store_url: str) -> None:
    assert completions("explain", "", url=AWAY) == []
    assert completions("explain", "", url="nonsense") == []
    assert completions("explain", "", url=store_url) == []
    assert list(tmp_path.iterdir()) == []  # to look makes no store


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell(shell: str) -> None:
    done = subprocess.run([BIN / "penstock", "completion", shell], capture_output=True, text=True, check=True)
    assert f"_PENSTOCK_COMPLETE={shell}_complete" in done.stdout
    assert subprocess.run([BIN / "penstock", "completion", "tcsh"], capture_output=True, check=False).returncode == 2
    interpreter = shutil.which(shell)
    if interpreter is not None:
        subprocess.run([interpreter, "-n"], input=done.stdout, text=True, check=True)


@on_sqlite
def test_in_a_real_bash(new_engine: NewEngine, configure: Configure, store_url: str) -> None:
    if shutil.which("bash") is None:
        missing("no bash")
    configure(pools={"limits": {"warehouse": 2, "web": 1}})
    engine = new_engine(settings=CALM)
    engine.acquire(engine.claim("web", run_id="nightly-7"))
    script = """
    eval "$(penstock completion bash)"
    complete -p penstock
    complete_now() {
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}; COMPREPLY=()
        _penstock_completion penstock; echo "${COMPREPLY[@]}"
    }
    complete_now penstock pools get w
    complete_now penstock explain nigh
    """
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "PENSTOCK_STORE_URL": store_url}
    done = subprocess.run(
        ["bash", "-ec", script], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    registered, pools, runs = done.stdout.splitlines()
    assert "_penstock_completion penstock" in registered
    assert (pools, runs) == ("warehouse web", "nightly-7")
