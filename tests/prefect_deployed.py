"""Runs of the flows in prefect_integration/flows/deployed.py, and what became of them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intervals import Interval
from penstock.demo.prefect_host import FINAL_STATES, PrefectHost
from penstock.engine import Engine

FLOWS = Path(__file__).parent / "prefect_integration" / "flows"


class Runs:
    """Starts runs of deployments, and tells what became of them."""

    def __init__(self, host: PrefectHost, folder: Path) -> None:
        self.host, self.folder = host, folder
        self._deployments: dict[tuple[str, str], str] = {}

    def start(self, flow: str, label: str, pool: str = "limited", **options: Any) -> str:
        """Schedule a run; its id. `penstock` is what the run declares."""
        if (flow, pool) not in self._deployments:
            entrypoint = f"{FLOWS / 'deployed.py'}:{flow}"
            self._deployments[flow, pool] = self.host.deploy(f"{flow}-{pool}-{self.folder.name}", entrypoint, pool)
        parameters = {"folder": str(self.folder), "label": label, **options.pop("parameters", {})}
        if (penstock := options.pop("penstock", None)) is not None:
            options["job_variables"] = {"penstock": penstock}
        return self.host.run_deployment(self._deployments[flow, pool], name=label, parameters=parameters, **options)

    def start_here(
        self, flow: str, label: str, pool: str = "", *, settings: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Run a flow in a process of its own, without a worker, under `@limited(pool)`."""
        return self.host.run_flow(label, FLOWS / "deployed.py", flow, pool, str(self.folder), label, settings=settings)

    def state(self, run_id: str) -> str:
        """Its name."""
        return str(self.host.flow_run(run_id)["state"]["name"])

    def wait_for_state(self, run_id: str, *names: str, seconds: float = 240) -> None:
        """Until its state has one of these names."""
        self.host.wait_for(f"{run_id} is {names}", lambda: self.state(run_id) in names, seconds=seconds)

    def wait_for_end(self, run_id: str, *, seconds: float = 240) -> dict[str, Any]:
        """The run once it is over, however."""

        def over() -> bool:
            return self.host.flow_run(run_id)["state_type"] in FINAL_STATES

        self.host.wait_for(f"the end of {run_id}", over, seconds=seconds)
        return self.host.flow_run(run_id)

    def names(self, run_id: str) -> list[str]:
        """The names of the states that it went through."""
        return [state["name"] for state in self.host.states(run_id)]

    def has_begun(self, label: str) -> bool:
        """Whether it has come to its work."""
        return bool(self.works(label))

    def works(self, label: str) -> list[dict[str, Any]]:
        """Each time that a run of that name worked: `pid`, and `begun` and `ended` by the machine's monotonic clock."""
        return [json.loads(note.read_text()) for note in self.folder.glob(f"{label}~*.work")]

    def intervals(self, label: str) -> list[Interval]:
        """From when to when it worked, in order."""
        return sorted((work["begun"], work["ended"]) for work in self.works(label))

    def tell_to_end(self, label: str) -> None:
        """Have it end its work now."""
        (self.folder / f"{label}.end").touch()


def wait_for_expiry(engine: Engine, host: PrefectHost, pid: int) -> None:
    """Until the store has forgotten a process that was killed."""
    host.wait_for(f"{pid} expires", lambda: pid not in [one["pid"] for one in engine.status()["sessions"]], seconds=30)
