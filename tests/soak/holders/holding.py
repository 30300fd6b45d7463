"""What all holders of the soak do, on whatever host: hold on for a while, and tell from when to when.

`python holding.py OP RUN SECONDS SLOTS` does it as a command; SLOTS is JSON: limit key → slots.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


def run_slots(customer: str) -> dict[str, int]:
    """What a run of that customer holds from its start to its end."""
    return {"runs": 1, f"run_tag:customer=*:{customer}": 1}


@contextmanager
def holding(
    host: str, op: str, run: str, slots: Mapping[str, int], run_holds: Mapping[str, int] | None = None
) -> Iterator[None]:
    """Tell when it begins and when it ends; of one that is killed inside, the end is its process's.

    By CLOCK_MONOTONIC, which all processes of a machine share. `run_holds`: what its run holds, from the begin of the
    first such op to the end of the last.
    """
    hold = uuid.uuid4().hex
    facts = {"host": host, "op": op, "run": run, "slots": dict(slots), "run_slots": dict(run_holds or {})}
    _tell(event="begin", hold=hold, pid=os.getpid(), **facts)
    try:
        yield
    finally:
        _tell(event="end", hold=hold)


def _tell(**facts: object) -> None:
    line = json.dumps({**facts, "at": time.monotonic()}) + "\n"
    file = os.open(os.environ["SOAK_HOLDS"], os.O_WRONLY | os.O_APPEND)
    try:
        os.write(file, line.encode())  # at once: lines of several processes do not mix
    finally:
        os.close(file)


if __name__ == "__main__":
    op, run, seconds, slots = sys.argv[1:5]
    with holding("penstock run", op, run, json.loads(slots)):
        time.sleep(float(seconds))
