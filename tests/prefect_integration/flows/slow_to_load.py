"""A flow whose module takes its time: its process lives, and the run has not begun."""

import os
import time
from pathlib import Path

from prefect import flow

LOADS_WHEN = Path(os.environ["LOADS_WHEN"])
LOADS_WHEN.with_suffix(".begun").touch()
while not LOADS_WHEN.exists():
    time.sleep(0.1)


@flow
def slow_to_load() -> None:
    pass
