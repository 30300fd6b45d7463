"""The protocol models, checked by spin. `python tests/model/check.py` prints the tables; `--all`: of large ones, too.

Each model is checked as it stands, every state of it, and then once more for each of its guards without that guard: a
check that cannot fail proves nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent
MEMORY_MB = 12000
DEPTH = 4_000_000
AT_ONCE = 2
INSTALL = "Debian and Ubuntu: apt-get install spin gcc libc6-dev"


@dataclass(frozen=True, slots=True)
class Check:
    """One run of the checker: a model, the `-D` flags that size it or take a guard out, and what is looked for.

    `live`: by cycles under weak fairness, else by assertions and by states in which nothing moves any more.
    """

    model: str
    flags: tuple[str, ...] = ()
    what: str = ""
    live: bool = False

    @property
    def name(self) -> str:
        return " ".join((self.model, *self.flags))


@dataclass(frozen=True, slots=True)
class Found:
    """What a run came to. `fault`: the assertion or cycle that was found, if any; `all_seen`: no state was left out."""

    check: Check
    states: int
    seconds: float
    memory_mb: float
    fault: str | None
    all_seen: bool


def _slots(flags: str, what: str, *, live: bool = False) -> Check:
    return Check("slots", tuple(flags.split()), what, live)


HAND_OVER = "I1, I2, I4 by wake-ups alone, I6, I7"
FAULTS = "I1, I2, I4, I5, I6, I7"
SHORT = (
    _slots("DEMANDS=0", HAND_OVER),
    _slots("DEMANDS=1", HAND_OVER),
    _slots("DEMANDS=3", HAND_OVER),
    _slots("DEMANDS=4", HAND_OVER),
    _slots("DEMANDS=5", HAND_OVER),
    _slots("DEMANDS=0 KEEPS", HAND_OVER),
    _slots("CLIENTS=2 DEMANDS=4 CRASHES=1", FAULTS),
    _slots("DEMANDS=1 CRASHES=1", FAULTS),
    _slots("DEMANDS=3 STALLS=1", FAULTS),
    # Who is held to be dead and dies between its release and its look has no session left that a sweep could find.
    _slots("CLIENTS=2 DEMANDS=4 CRASHES=1 STALLS=1 POLLS", "I1, I2, I4 by polls, I5, I6, I7"),
    _slots("CLIENTS=2 DEMANDS=1 LATE=1 SILENT=1", FAULTS),
    _slots("CLIENTS=2 DEMANDS=4 WITHDRAWALS=1 REPEATS=1", FAULTS),
    _slots("CLIENTS=2 DEMANDS=2 CHANGES=2", FAULTS),
    _slots("CLIENTS=2 DEMANDS=1 STALLS=1", FAULTS),
    _slots("CLIENTS=2 DEMANDS=1 THROWN=1 POLLS", "I1, I2, I4 by polls, I6, I7"),
    _slots("CLIENTS=2 DEMANDS=1 ROUNDS=2 EPOCHS", "I3"),
    _slots("CLIENTS=2 DEMANDS=1 ROUNDS=0 POLLS SILENT=1 LIVENESS", "I4 under fairness", live=True),
    Check("fencing", (), "I9"),
    Check("retries", (), "I2, I5, I7"),
    Check("reservation", (), "I6 under fairness", live=True),
)
LONG = (
    *(_slots(f"DEMANDS={demands} CRASHES=1", FAULTS) for demands in (0, 3, 4)),
    *(_slots(f"DEMANDS={demands} STALLS=1", FAULTS) for demands in (0, 1, 4)),
    *(_slots(f"DEMANDS={demands} CHANGES=2", FAULTS) for demands in (2, 3, 4)),
    *(_slots(f"DEMANDS={demands} LATE=1 SILENT=1", FAULTS) for demands in (0, 4)),
    *(_slots(f"DEMANDS={demands} WITHDRAWALS=1 REPEATS=1", FAULTS) for demands in (0, 4)),
    _slots("DEMANDS=1 EPOCHS", "I3"),
)


def _mutants(model: str, *lines: str, live: bool = False) -> Iterator[Check]:
    """Lines of: the flag that takes the guard out, and those of the smallest model in which that shows."""
    for line in lines:
        yield Check(model, tuple(line.split()), live=live)


MUTANTS = (
    *_mutants(
        "slots",
        "WITHOUT_SLOT_LOCK CLIENTS=2 DEMANDS=1",
        "WITHOUT_SLOT_RECHECK CLIENTS=2 DEMANDS=1",
        "WITHOUT_COUNT_CHECK CLIENTS=2 DEMANDS=4",
        "WITHOUT_QUEUE_CHECK DEMANDS=1",
        "WITHOUT_CLAIM_LOCK CLIENTS=2 DEMANDS=1 WITHDRAWALS=1",
        "WITHOUT_CLAIM_RECHECK CLIENTS=2 DEMANDS=1 WITHDRAWALS=1",
        "WITHOUT_CONTESTED DEMANDS=5",
        "WITHOUT_LOOK_AFTER_QUEUE CLIENTS=2 DEMANDS=1",
        "WITHOUT_LOOK_AFTER_RELEASE CLIENTS=2 DEMANDS=1",
        "WITHOUT_LOOK_AFTER_GRANT DEMANDS=0 KEEPS",
        "WITHOUT_LOOK_AFTER_BATCH CLIENTS=2 DEMANDS=1",
        "WITHOUT_LOOK_AFTER_PARK CLIENTS=2 DEMANDS=1 LATE=1",
        "WITHOUT_LOOK_AFTER_CHANGE CLIENTS=2 DEMANDS=2 CHANGES=2",
        "LOOK_IN_TRANSACTION_INSTEAD CLIENTS=2 DEMANDS=1",
        "RELEASE_BY_SLOT_INSTEAD CLIENTS=2 DEMANDS=1 REPEATS=1",
        "ACKNOWLEDGE_ANY_STATE_INSTEAD CLIENTS=2 DEMANDS=1 LATE=1",
        "REAP_WITHOUT_RECHECK CLIENTS=2 DEMANDS=1 STALLS=1",
        "REAP_BY_EXPIRY_INSTEAD CLIENTS=2 DEMANDS=1 STALLS=1",
        "REAP_ONLY_ITS_OWN_INSTEAD CLIENTS=2 DEMANDS=1 STALLS=1",
        "PARK_WITHOUT_RECHECK CLIENTS=2 DEMANDS=1 LATE=1",
        "WITHOUT_PARKING CLIENTS=2 DEMANDS=1 SILENT=1",
        "SHRINK_BY_NUMBER_INSTEAD CLIENTS=2 DEMANDS=2 CHANGES=2",
        "SHRINK_WITHOUT_LOCK CLIENTS=2 DEMANDS=2 CHANGES=2",
        "CAPACITY_ON_LIMIT_INSTEAD CLIENTS=2 DEMANDS=2 CHANGES=2",
        "WITHOUT_SETTLE_DRAINED DEMANDS=2 CHANGES=1",
        "EPOCH_BEFORE_LOCK_INSTEAD CLIENTS=2 DEMANDS=1 EPOCHS",
    ),
    *_mutants(
        "slots",
        "QUEUE_AGAIN_INSTEAD CLIENTS=2 DEMANDS=1 ROUNDS=0 SILENT=1 LIVENESS",
        live=True,
    ),
    *_mutants(
        "fencing",
        "WITHOUT_MARGIN",
        "WITHOUT_GRACE",
        "FENCE_FROM_ANSWER_INSTEAD",
        "LOST_NOT_FOR_GOOD_INSTEAD",
        "BEAT_WRITES_THE_ROW_INSTEAD",
    ),
    *_mutants(
        "retries",
        "PICK_BESIDE_THE_CLAIM_INSTEAD",
        "WITHOUT_TOMBSTONE",
        "WITHOUT_BURIAL",
        "WITHOUT_END_OF_UNKNOWN",
        "RELEASE_TWICE_INSTEAD",
    ),
    *_mutants("reservation", "WITHOUT_RESERVATION", "BINDS_EVERY_RESERVER_INSTEAD", live=True),
)


def missing() -> str | None:
    """What is not installed that it takes, with how to install it."""
    absent = [program for program in ("spin", "gcc") if shutil.which(program) is None]
    return f"no {' and no '.join(absent)}: {INSTALL}" if absent else None


def version() -> str:
    """The checker's."""
    return subprocess.run(["spin", "-V"], capture_output=True, text=True, check=True).stdout.strip()


def run(check: Check, *, quick: bool = False) -> Found:
    """Make the checker of this model, and run it. `quick`: to be made, for one that finds fault soon.

    Raises RuntimeError with what was printed if it cannot be made.
    """
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="penstock-model-") as folder:
        model = shutil.copy(HERE / f"{check.model}.pml", folder)
        _made(["spin", "-a", *(f"-D{flag}" for flag in check.flags), Path(model).name], folder)
        searching = [] if check.live else ["-DSAFETY"]
        # No partial order reduction: an escape from any step, as a crash is, would not be worth the doubt.
        options = ["-DNOREDUCE", "-DCOLLAPSE", "-DNFAIR=3", f"-DMEMLIM={MEMORY_MB}", "-DVECTORSZ=1024", *searching]
        _made(["gcc", "-O0" if quick else "-O1", "-w", *options, "-o", "pan", "pan.c"], folder)
        looking = ["-a", "-f"] if check.live else ["-E"]  # nobody moves: that is for the Monitor to judge
        done = subprocess.run(
            ["./pan", f"-m{DEPTH}", *looking], cwd=folder, capture_output=True, text=True, check=False
        )
    text = done.stdout
    fault = re.search(r"^pan:1: (.*?) \(at depth", text, re.MULTILINE)
    counted = re.search(r"^\s*([\d.e+]+) states, stored", text, re.MULTILINE)
    if counted is None:
        raise RuntimeError(f"{check.name}: the checker did not come to an end: {text}{done.stderr}")
    memory = re.search(r"([\d.]+)\s+total actual memory usage", text)
    left_out = ("Search not completed", "max search depth too small", "out of memory")
    return Found(
        check,
        int(float(counted[1])),
        time.monotonic() - begun,
        float(memory[1]) if memory else 0.0,
        " ".join(fault[1].split()) if fault else None,
        not any(words in text for words in left_out),
    )


def _made(command: list[str], folder: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0 or "Error" in done.stdout:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")


def run_all(checks: Iterable[Check], at_once: int = AT_ONCE, *, quick: bool = False) -> list[Found]:
    """Several beside each other, in the order in which they were given."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(partial(run, quick=quick), checks))


def _print(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    for row in (head, tuple("---" for _ in head), *rows):
        print("|", " | ".join(str(cell) for cell in row), "|", flush=True)


def main() -> int:
    """Print both tables; 1 if a property failed or a mutant lived."""
    if why := missing():
        sys.exit(why)
    long = "--all" in sys.argv[1:] or os.environ.get("PENSTOCK_TEST_MODEL") == "all"
    print(f"{version()}, {time.strftime('%Y-%m-%d')}\n")
    checked = run_all(SHORT) + (run_all(LONG, at_once=1) if long else [])
    rows = [(one.check.name, one.check.what, f"{one.states:,}", f"{one.seconds:.0f}", _verdict(one)) for one in checked]
    _print(("model", "properties", "states", "seconds", "result"), rows)
    print()
    mutants = run_all(MUTANTS, quick=True)
    _print(
        ("model", "without", "found"),
        ((one.check.model, one.check.flags[0], f"`{one.fault}`" if one.fault else "NOTHING") for one in mutants),
    )
    return int(any(one.fault or not one.all_seen for one in checked) or not all(one.fault for one in mutants))


def _verdict(found: Found) -> str:
    if found.fault:
        return f"FAULT: {found.fault}"
    return "holds" if found.all_seen else "no fault, but not every state was seen"


if __name__ == "__main__":
    sys.exit(main())
