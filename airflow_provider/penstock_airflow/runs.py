"""The end of a DAG run: told by the callbacks that the policy composes, and behind them asked for by the triggerer."""

from __future__ import annotations

import logging
from typing import Any

from penstock.hooks import installed_plugins
from penstock.hookspecs import hookimpl
from penstock.store.contract import ClaimRow

from penstock_airflow import claims, compatibility, installation

log = logging.getLogger("penstock.airflow")
PATIENCE_SECONDS = 20.0  # the dag-processor kills the whole parse of a file after 50 s


def end(context: Any) -> None:
    """Free the run's lease. Raises StoreUnavailable when the store stays away; Airflow writes that into its log."""
    run_id = claims.run_id(context["dag"].dag_id, context["run_id"])

    def end_run() -> bool:
        engine = installation.engine()
        engine.configuration()  # the first question makes sure of the store
        return engine.end_run(run_id)

    if installation.patiently(end_run, patience_seconds=PATIENCE_SECONDS):
        log.info("Penstock: the run slot of %s is free", run_id)


def watch() -> None:
    """Have this triggerer asked whether runs that hold a lease are alive, while somebody waits.

    Airflow calls no callback when a user marks or deletes a run. Task processes are not asked: their line to Airflow
    may be lent to a subprocess, and a question from another thread would garble it.
    """
    if not installed_plugins().has_plugin(__name__) and not compatibility.in_one_process():
        installed_plugins().register(_Probe(), __name__)


class _Probe:
    @hookimpl
    def penstock_holder_alive(self, claim: ClaimRow) -> bool | None:
        """None for what is not this installation's, or cannot be told now."""
        run = claim.claim
        if (run.host, run.deployment) != (claims.HOST, installation.installation().deployment) or run.run_id is None:
            return None
        dag_id, _, dag_run_id = run.run_id.partition("/")
        try:
            return compatibility.run_is_alive(dag_id, dag_run_id)
        except Exception as error:  # whatever Airflow raises: a question without an answer frees nothing
            log.warning("Penstock: Airflow does not say whether %s is over: %s", run.run_id, error)
            return None
