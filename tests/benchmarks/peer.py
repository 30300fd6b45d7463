"""What another limiter does to be measured beside us: a process of its own, in its own environment, asked for turns.

It is asked by lines of JSON, `{"clients": 8, "capacity": 64, "hold_seconds": 0, "seconds": 2}`, and answers each with
`{"rate": …}`. Its first line says what it is. Standard library only: nothing of ours is installed there.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.crew import Crew, Work


def serve(name: str, work: Work, prepare: Callable[[int], Mapping[str, Any]], *, preload: Sequence[str] = ()) -> None:
    """Take the turns asked for until the input ends.

    `prepare(capacity)` sets the limit and returns the work's arguments; `hold_seconds` is one more.
    """
    # The other limiter may print what it likes: that goes to the error output, only answers go out.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    print(json.dumps({"name": name}), file=answers, flush=True)
    crew: Crew | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        if crew is None or crew.clients != asked["clients"]:
            if crew is not None:
                crew.close()
            crew = Crew(asked["clients"], preload=preload)
        arguments = prepare(asked["capacity"])
        turn = crew.turn(work, asked["seconds"], warm_up=1, hold_seconds=asked["hold_seconds"], **arguments)
        print(json.dumps({"rate": turn.rate}), file=answers, flush=True)
    if crew is not None:
        crew.close()
