"""What one version of Penstock does in a test of upgrades: a program, run with that version's tree on the path.

It uses only what every version since the first has. It works with the libraries that are installed here, but not with
the Penstock that is: that one's entry points name plugins which an older tree does not have.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

_distributions = metadata.distributions


def _others(**context: Any) -> Any:
    return [one for one in _distributions(**context) if one.metadata["Name"] != "penstock"]


metadata.distributions = _others


def cli(*arguments: str) -> None:
    """The command line."""
    from penstock.cli import main

    sys.argv[1:] = arguments
    main()


def leave_data(url: str) -> None:
    """Two limits, a lease and two waiters between processes, a lease that was released; all told as JSON."""
    import penstock
    from penstock import changes
    from penstock.config import PoolLimit
    from penstock.settings import Settings

    with penstock.connect(url, settings=Settings(ticket_seconds=3600.0)) as engine:
        changes.set_pool(engine, "a", PoolLimit(limit=2))
        changes.set_pool(engine, "b", PoolLimit(limit=1))
        engine.acquire(engine.claim("a")).release()
        ids = {}
        for name, pools, priority in (("holds", {"a": 2, "b": 1}, 0), ("second", "a", 0), ("first", "a", 5)):
            claim = engine.claim(pools, op_id=name, run_id="run", priority=priority)
            decision = engine.request(claim, ticket=True).step()
            ids[name] = claim.claim_id
            print(name, type(decision).__name__, file=sys.stderr)
        epochs = [slot.epoch for row in engine.snapshot().claims for slot in row.slots]
        history = [[row.event, row.claim_id] for row in engine.store.history()]
    print(json.dumps({"ids": ids, "epoch": max(epochs), "history": history}))


def work(url: str, pool: str, notes: str, stop: str, held_seconds: str) -> None:
    """Hold a slot again and again until the file `stop` is there; a line for each lease, and for each error."""
    import penstock
    from penstock.errors import PenstockError
    from penstock.settings import Settings

    with Path(notes).open("a", buffering=1) as file, penstock.connect(url, settings=Settings()) as engine:
        while not Path(stop).exists():
            try:
                with engine.hold(pool):
                    begun = time.monotonic()
                    time.sleep(float(held_seconds))
                    file.write(f"held {begun} {time.monotonic()}\n")
            except PenstockError as error:
                now = time.monotonic()
                file.write(f"{type(error).__name__}: {' '.join(str(error).split())} {now} {now}\n")
                time.sleep(0.2)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
