"""What Prefect loads by the entry point `prefect.collections`: whatever it finds by its type."""

from __future__ import annotations

from penstock_prefect.process_worker import PenstockProcessWorker
from penstock_prefect.worker import LimitedRuns

__all__ = ["LimitedRuns", "PenstockProcessWorker"]
