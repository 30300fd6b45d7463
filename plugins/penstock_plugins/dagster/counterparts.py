"""Settings of Dagster that Penstock has no key for: why, and what to do instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from penstock_plugins.dagster.source import READ, Form, Source

ELSEWHERE = "not about limits: it stays with Dagster"
TIMEOUT = "a run that hangs is ended by its host: `dagrun_timeout` in Airflow, `timeout_seconds` in Prefect"
WORKER_DIES = "the slots of what died come back within a session's TTL; nothing to set"
RETRIES = "retries are the host's: `retries=` in Airflow and in Prefect; each try is a new claim"
LOOKS = "there is no daemon that looks at a queue: a waiter is woken when there is room; nothing to set"
NO_BRANCHES = "there are no branch deployments here: give their runs"
THREADS = f"threads of Dagster's daemon; {ELSEWHERE}"

TOP: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "local_artifact_storage",
            "compute_logs",
            "storage",
            "run_storage",
            "event_log_storage",
            "schedule_storage",
            "scheduler",
            "telemetry",
            "nux",
            "python_logs",
            "code_servers",
            "secrets",
            "defs_state_storage",
            "retention",
            "freshness",
            "sso_default_role",
        ),
        ELSEWHERE,
    ),
    "run_launcher": "where a run works is the host's business: executors in Airflow, work pools in Prefect",
    "instance_class": f"a class of your own; {ELSEWHERE}",
    "backfills": THREADS,
    "sensors": THREADS,
    "schedules": THREADS,
    "auto_materialize": f"what starts runs is the host's business; {ELSEWHERE}",
    "run_retries": RETRIES,
}
"""Top-level keys that limit nothing."""

LIMITS_OF_PLUS: Mapping[str, str] = {
    "max_concurrent_branch_deployment_runs": f"{NO_BRANCHES} a tag of their own, and write a rule on it",
    "max_concurrent_runs_per_branch_deployment": f"{NO_BRANCHES} a tag with the branch's name, and write a rule with "
    "applyLimitPerUniqueValue",
    "branch_deployment_tag_concurrency_limits": f"{NO_BRANCHES} tags of their own, and write rules on them",
    "non_isolated_runs": "max_concurrent_non_isolated_runs limits what one code server takes: use a pool that those "
    "runs declare",
}

QUEUE: Mapping[str, str] = {
    "dequeue_interval_seconds": LOOKS,
    "dequeue_use_threads": LOOKS,
    "dequeue_num_workers": LOOKS,
    "max_user_code_failure_retries": f"a code server that is away is Dagster's alone; {RETRIES}",
    "user_code_failure_retry_delay": f"a code server that is away is Dagster's alone; {RETRIES}",
}

MONITORING: Mapping[str, str] = {
    "free_slots_after_run_end_seconds": "slots are free as soon as their holder ends, and within a session's TTL "
    "when it died; nothing to set",
    "max_runtime_seconds": TIMEOUT,
    "start_timeout_seconds": f"a run that never starts holds nothing here; {TIMEOUT}",
    "cancel_timeout_seconds": WORKER_DIES,
    "enabled": WORKER_DIES,
    "max_resume_run_attempts": RETRIES,
    "poll_interval_seconds": WORKER_DIES,
    "cancellation_thread_poll_interval_seconds": WORKER_DIES,
}


def unknown_keys(source: Source) -> list[str]:
    """Top-level keys that Dagster refuses; a class of one's own may have any."""
    if "instance_class" in source.document or source.form is Form.HELM:
        return []
    known = READ | TOP.keys() | (LIMITS_OF_PLUS.keys() if source.form is Form.PLUS else set())
    return [key for key in source.document if key not in known]


def without(source: Source) -> Iterator[tuple[tuple[str, ...], str]]:
    """Each setting that limits nothing here: its place, and why and what to do."""
    for key, value in source.document.items():
        if key == "run_monitoring" and isinstance(value, dict):
            yield from (((key, name), MONITORING[name]) for name in value if name in MONITORING)
        elif key == "run_queue" and isinstance(value, dict):
            yield from (((key, name), QUEUE[name]) for name in value if name in QUEUE)
        elif key == "run_coordinator" and isinstance(value, dict) and isinstance(value.get("config"), dict):
            yield from (((key, "config", name), QUEUE[name]) for name in value["config"] if name in QUEUE)
        elif key not in READ and key not in LIMITS_OF_PLUS:
            yield (key,), TOP.get(key, ELSEWHERE)
