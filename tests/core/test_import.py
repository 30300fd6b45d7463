"""`import penstock` is light: no host, no driver, none of the heavy libraries."""

from __future__ import annotations

import subprocess
import sys


def test_import_loads_no_host_no_driver_and_nothing_heavy() -> None:
    code = (
        "import sys, penstock;"
        "heavy = {'airflow','prefect','sqlalchemy','psycopg','sqlite3','pydantic','alembic','click','rich','yaml'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
