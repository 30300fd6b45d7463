"""Stands for work of yours."""

import time


def work(what: str) -> None:
    print(f"at work: {what}")
    time.sleep(1)
