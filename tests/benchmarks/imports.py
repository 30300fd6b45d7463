"""How long `import penstock` takes, and what it loads."""

from __future__ import annotations

import json
import subprocess
import sys
from statistics import median

from benchmarks.cases import Run
from benchmarks.report import Bar, Row

HOSTS_AND_DRIVERS = {
    "airflow",
    "prefect",
    "dagster",
    "psycopg",
    "psycopg2",
    "pymysql",
    "MySQLdb",
    "sqlite3",
    "_sqlite3",
}
REPEATS = 7


def import_time(run: Run) -> Row:
    """The median of `python -X importtime`'s cumulative figure, each in a new interpreter."""
    bar, reach_for = Bar(150, "ms", most=True), Bar(60, "ms", most=True)
    milliseconds = median(_once() for _ in range(REPEATS))
    command = [sys.executable, "-c", "import sys, json, penstock; print(json.dumps(list(sys.modules)))"]
    loaded = set(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    unwanted = sorted(HOSTS_AND_DRIVERS & loaded)
    return Row(
        case="import penstock",
        ours=f"{milliseconds:.0f} ms",
        bar=f"{bar}, no host or driver",
        reach_for=str(reach_for),
        met=bar.met(milliseconds) and not unwanted,
        reached=reach_for.met(milliseconds) and not unwanted,
        note=f"loads {', '.join(unwanted)}" if unwanted else f"median of {REPEATS}; no host, no driver",
        figures={"milliseconds": milliseconds},
    )


def _once() -> float:
    command = [sys.executable, "-X", "importtime", "-c", "import penstock"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    (cumulative,) = [line.split("|")[1] for line in lines if line.split("|")[-1].strip() == "penstock"]
    return int(cumulative) / 1000
