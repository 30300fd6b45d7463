"""The `work` of the recipes in the tests: notes from when to when, and goes on until it is let go."""

from __future__ import annotations

import json
import os
import time
import uuid
from pathlib import Path

SECONDS, AT_MOST_SECONDS = 0.5, 200.0


def work(what: str) -> None:
    """Work for a moment, and for as long as there is a file `RECIPE.hold`; the note is there from the beginning."""
    folder = Path(os.environ["INTERVALS_FOLDER"])
    note = folder / f"{uuid.uuid4()}.note"
    began = time.monotonic()
    run = os.environ.get("AIRFLOW_CTX_DAG_RUN_ID") or str(os.getpid())
    recipe = os.environ.get("AIRFLOW_CTX_DAG_ID") or os.environ["RECIPE"]

    def write(ended: float | None) -> None:
        draft = note.with_suffix(".draft")
        draft.write_text(json.dumps({"recipe": recipe, "what": what, "run": run, "began": began, "ended": ended}))
        draft.replace(note)

    write(None)
    time.sleep(SECONDS)
    while (folder / f"{recipe}.hold").exists() and time.monotonic() < began + AT_MOST_SECONDS:
        time.sleep(0.05)
    write(time.monotonic())
