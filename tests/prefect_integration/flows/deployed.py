"""Flows that the tests deploy. Each notes in a folder from when to when it worked, and in which process."""

import json
import os
import sys
import time
import uuid
from pathlib import Path

from penstock_prefect import limited, released, slots
from prefect import flow, pause_flow_run, suspend_flow_run, task


def work(folder: str, label: str, seconds: float = 0.5) -> None:
    """Work until the time is over or the label is told to end; how far it came is known even when it is killed."""
    begun = time.monotonic()
    note = Path(folder, f"{label}~{uuid.uuid4().hex}.work")
    while True:
        ended = time.monotonic()
        note.with_suffix(".next").write_text(json.dumps({"pid": os.getpid(), "begun": begun, "ended": ended}))
        note.with_suffix(".next").rename(note)
        if ended >= begun + seconds or Path(folder, f"{label}.end").exists():
            return
        time.sleep(0.02)


def is_first(folder: str, label: str) -> bool:
    """Whether this was not called before, in any process."""
    try:
        Path(folder, f"{label}.first").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@flow
def plain(folder: str, label: str, seconds: float = 0.5) -> None:
    work(folder, label, seconds)


@flow
def forever(folder: str, label: str) -> None:
    work(folder, label, 90)


@flow
def failing(folder: str, label: str) -> None:
    work(folder, label)
    raise RuntimeError("it fails")


@flow(retries=1, retry_delay_seconds=2)
def retrying(folder: str, label: str) -> None:
    first = is_first(folder, label)
    work(folder, label)
    if first:
        raise RuntimeError("the first attempt fails")


@flow
def pausing(folder: str, label: str) -> None:
    work(folder, label)
    pause_flow_run(timeout=120, poll_interval=1)
    work(folder, label)


@flow
def pausing_released(folder: str, label: str) -> None:
    work(folder, label)
    with released():
        pause_flow_run(timeout=240, poll_interval=1)
    work(folder, label)


@flow
def suspending(folder: str, label: str) -> None:
    if is_first(folder, label):
        work(folder, label)
        suspend_flow_run(timeout=240)
    work(folder, label)


@flow
async def blocking(folder: str, label: str, seconds: float) -> None:
    work(folder, label, seconds)  # its event loop stands still


@limited("inner")
@task
def inside(folder: str, label: str) -> None:
    work(folder, f"{label}-task")


@flow
def undecorated(folder: str, label: str) -> None:
    inside(folder, label)
    with slots("outer"):  # the run holds it
        work(folder, label)


@limited("inner")
@flow
def decorated(folder: str, label: str) -> None:
    with slots("outer"):
        inside(folder, label)
    work(folder, label)


@limited("live_task_retry")
@task(retries=1, retry_delay_seconds=15)  # the rival behind it is looked at every few seconds
def retried(folder: str, label: str) -> None:
    first = is_first(folder, label)
    work(folder, label)
    if first:
        raise RuntimeError("the first attempt fails")


@flow
def with_retried_task(folder: str, label: str) -> None:
    retried(folder, label)


@limited("live_served_sigkill")
@flow
def served(folder: str, label: str) -> None:
    work(folder, label, 90)


if __name__ == "__main__":  # in a process of its own, without a worker: `python deployed.py FLOW POOL FOLDER LABEL`
    name, pool, folder, label = sys.argv[1:]
    chosen = globals()[name].with_options(flow_run_name=label)
    if name == "served":
        chosen.serve(label, parameters={"folder": folder, "label": label})
    else:
        (limited(pool)(chosen) if pool else chosen)(folder, label)
