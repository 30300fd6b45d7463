"""The intervals that the tasks of tests/airflow_provider/dags write down (recording.py), as the tests read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def recorded(folder: Path) -> list[dict[str, Any]]:
    """All that are there, by their beginning: name, began, ended (the machine's monotonic clock), pid, supervisor."""
    read = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return sorted(read, key=lambda interval: float(interval["began"]))


def forget_intervals(folder: Path) -> None:
    """Delete them all; one that is being written meanwhile may be written again."""
    for path in folder.iterdir():
        path.unlink(missing_ok=True)
