"""What the tests' tasks do: hold on for a while, and write down from when to when by the machine's monotonic clock."""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from pathlib import Path


def record(name: str, seconds: float = 1.0) -> None:
    """Work for `seconds`, then write the interval under this name."""
    began = time.monotonic()
    time.sleep(seconds)
    folder = Path(os.environ["INTERVALS_FOLDER"])
    interval = {"name": name, "began": began, "ended": time.monotonic()}
    (folder / f"{uuid.uuid4()}.json").write_text(json.dumps(interval))


if __name__ == "__main__":
    record(sys.argv[1])
