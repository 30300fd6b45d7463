"""What the tests' tasks do: hold on for a while, and write down from when to when by the machine's monotonic clock."""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from pathlib import Path


def record(name: str, seconds: float = 1.0, until: str | None = None) -> None:
    """Work for `seconds`, or until there is a file of that name.

    The interval is on disk all the while, so that it is known of a killed process, too.
    """
    path = Path(os.environ["INTERVALS_FOLDER"]) / f"{uuid.uuid4()}.json"
    draft = path.with_suffix(".draft")
    began = time.monotonic()
    while True:
        now = time.monotonic()
        interval = {"name": name, "began": began, "ended": now, "pid": os.getpid(), "supervisor": os.getppid()}
        draft.write_text(json.dumps(interval))
        draft.replace(path)
        if now >= began + seconds or (until is not None and Path(until).exists()):
            return
        time.sleep(min(0.05, began + seconds - now))


if __name__ == "__main__":
    record(sys.argv[1])
