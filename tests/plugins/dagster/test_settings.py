"""What limits in Dagster's settings: where it is found, how it is read, and what is said of the rest.

What Dagster itself makes of the same files is asked in tests/beside_dagster.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from penstock.errors import ConfigError
from penstock.hookspecs import ImportedConfiguration
from penstock_plugins.dagster import run_tags
from penstock_plugins.dagster.migration import migrated
from penstock_plugins.dagster.run_tags import Rule, translated

Migrate = Callable[..., ImportedConfiguration]


@pytest.fixture
def migrate(tmp_path: Path) -> Migrate:
    """Take over a text, from a file of that name."""

    def take(text: str, name: str = "dagster.yaml", **options: str) -> ImportedConfiguration:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return migrated(str(path), options)

    return take


def refused(take: Callable[[], object]) -> list[tuple[int | None, str, str]]:
    with pytest.raises(ConfigError) as raised:
        take()
    return [(fault.line, fault.path, fault.message) for fault in raised.value.faults]


DEFAULTS = {"pools": {"granularity": "op", "op_granularity_run_buffer": 0}, "runs": {"max_concurrent_runs": 10}}


def test_what_is_set_nowhere_is_dagsters_default(migrate: Migrate) -> None:
    found = migrate("telemetry: {enabled: false}\n")
    assert found.concurrency == DEFAULTS
    assert set(found.origins.values()) == {"Dagster's default: it is set nowhere"}
    assert found.left_out == ()
    assert "line 1: telemetry: not about limits: it stays with Dagster." in found.notes


def test_where_each_value_comes_from(migrate: Migrate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOST_RUNS", "7")
    found = migrate(
        "run_queue:\n  max_concurrent_runs: {env: MOST_RUNS}\n  tag_concurrency_limits:\n    - {key: team, limit: 2}\n"
        "concurrency:\n  default_op_concurrency_limit: 4\n"
    )
    assert found.concurrency["runs"]["max_concurrent_runs"] == 7
    assert found.origins == {
        "pools.default_limit": "dagster.yaml, line 6: concurrency.default_op_concurrency_limit",
        "pools.granularity": "Dagster's default: it is set nowhere",
        "pools.op_granularity_run_buffer": "Dagster's default: it is set nowhere",
        "runs.max_concurrent_runs": "dagster.yaml, line 2: run_queue.max_concurrent_runs, "
        "from the environment variable MOST_RUNS",
        "runs.tag_concurrency_limits[0]": "dagster.yaml, line 4: run_queue.tag_concurrency_limits[0]",
    }


def test_a_cap_in_a_variable_that_is_not_set_or_no_number(migrate: Migrate, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "run_queue:\n  max_concurrent_runs: {env: MOST_RUNS}\n"
    monkeypatch.delenv("MOST_RUNS", raising=False)
    ((line, path, message),) = refused(lambda: migrate(text))
    assert (line, path) == (2, "run_queue.max_concurrent_runs")
    assert "MOST_RUNS is not set here; set it for this command" in message
    monkeypatch.setenv("MOST_RUNS", "s3cret")
    ((_, _, message),) = refused(lambda: migrate(text))
    assert "holds no whole number" in message
    assert "s3cret" not in message


def test_contradictions_are_refused_with_dagsters_reason_and_all_faults_are_named(migrate: Migrate) -> None:
    text = (
        "concurrency:\n  pools: {default_limit: 5000}\n  default_op_concurrency_limit: 3\n"
        "run_queue: {max_concurrent_runs: 3}\nrun_coordinator: {module: dagster, class: QueuedRunCoordinator}\n"
        "telemetri: {}\n"
    )
    found = refused(lambda: migrate(text))
    assert [(line, path) for line, path, _ in found] == [
        (2, "concurrency.pools.default_limit"),
        (3, "concurrency.default_op_concurrency_limit"),
        (4, "run_queue"),
        (4, "run_queue.max_concurrent_runs"),
        (6, "telemetri"),
    ]
    assert [message for _, _, message in found] == [
        "5000 found; Dagster expects 0 to 1000",
        "Dagster refuses it beside `pools`; write pools.default_limit instead",
        "Dagster refuses it beside run_coordinator; keep one of them",
        "Dagster refuses it beside concurrency.runs or concurrency.pools; move it there",
        "no such key; did you mean `telemetry`?",
    ]


def test_a_coordinator_without_a_queue_caps_nothing(migrate: Migrate) -> None:
    found = migrate(
        "run_coordinator:\n  module: dagster._core.run_coordinator\n  class: DefaultRunCoordinator\n"
        "concurrency:\n  pools: {granularity: run}\n  runs: {max_concurrent_runs: 4}\n"
    )
    assert found.concurrency["runs"] == {"max_concurrent_runs": -1}
    assert found.origins["runs.max_concurrent_runs"].endswith("DefaultRunCoordinator queues no run and caps none")
    ((fault),) = found.left_out
    assert (fault.line, fault.path) == (6, "concurrency.runs.max_concurrent_runs")
    assert any("enforces no pool of run granularity. Here they are enforced." in note for note in found.notes)


def test_a_coordinator_of_ones_own_is_named(migrate: Migrate) -> None:
    found = migrate(
        "run_coordinator:\n  module: ours\n  class: Fair\n  config:\n    max_concurrent_runs: 4\n    weights: {a: 1}\n"
    )
    assert found.concurrency["runs"] == {"max_concurrent_runs": 4}
    assert [(fault.line, fault.path) for fault in found.left_out] == [
        (3, "run_coordinator.class"),
        (6, "run_coordinator.config.weights"),
    ]


def test_blocking_turned_off_lets_every_run_begin(migrate: Migrate) -> None:
    found = migrate("run_queue: {block_op_concurrency_limited_runs: {enabled: false}}\n")
    assert found.concurrency["pools"]["op_granularity_run_buffer"] == 10_000
    found = migrate(
        "concurrency: {pools: {granularity: run}}\nrun_queue: {block_op_concurrency_limited_runs: {enabled: false}}\n"
    )
    assert any("with it Dagster enforces no pool of run granularity at all" in note for note in found.notes)


def test_what_limits_nothing_is_named_line_by_line(migrate: Migrate) -> None:
    found = migrate(
        "run_monitoring:\n  enabled: true\n  free_slots_after_run_end_seconds: 300\n  max_runtime_seconds: 7200\n"
        "run_coordinator:\n  module: dagster\n  class: QueuedRunCoordinator\n"
        "  config:\n    dequeue_interval_seconds: 3\n"
        "run_retries: {enabled: true}\n"
    )
    told = "\n".join(found.notes)
    for line, path in (
        (3, "run_monitoring.free_slots_after_run_end_seconds"),
        (4, "run_monitoring.max_runtime_seconds"),
        (9, "run_coordinator.config.dequeue_interval_seconds"),
        (10, "run_retries"),
    ):
        assert f"line {line}: {path}: " in told
    assert "`dagrun_timeout` in Airflow, `timeout_seconds` in Prefect" in told


def test_what_is_wrong_in_blocks_that_are_not_read_is_dagsters_business(migrate: Migrate) -> None:
    found = migrate("storage: &s {postgres: {a: 1, a: 2}}\nrun_launcher: {module: m, config: {<<: *s, on: !odd 3}}\n")
    assert found.concurrency == DEFAULTS
    assert refused(lambda: migrate("telemetry: {}\ntelemetry: {}\n"))[0][0] == 2


# -- Dagster+ ----------------------------------------------------------------------------------------------------------


def test_settings_of_dagster_plus(migrate: Migrate) -> None:
    text = (
        "concurrency:\n  runs: {max_concurrent_runs: 20}\nsso_default_role: EDITOR\n"
        "max_concurrent_branch_deployment_runs: 50\nnon_isolated_runs: {max_concurrent_non_isolated_runs: 1}\n"
    )
    found = migrate(text, "settings.yaml")
    assert found.concurrency["runs"] == {"max_concurrent_runs": 20}
    assert [fault.line for fault in found.left_out] == [4, 5]
    ((line, _, message),) = refused(lambda: migrate(text.replace(": 20", ": -1"), "settings.yaml"))
    assert (line, message) == (2, "-1 found; Dagster+ expects 0 to 500")


def test_settings_of_dagster_plus_as_it_lists_them(migrate: Migrate) -> None:
    """With the older `run_queue`, every block there, and JSON as well as YAML."""
    settings: dict[str, Any] = {
        "concurrency": {},
        "run_queue": {"max_concurrent_runs": 30, "tag_concurrency_limits": [{"key": "team", "limit": 2}]},
        "run_monitoring": {
            "start_timeout_seconds": 1200,
            "cancel_timeout_seconds": 1400,
            "free_slots_after_run_end_seconds": 300,
            "max_runtime_seconds": 7200,
        },
        "run_retries": {"max_retries": 0, "retry_on_asset_or_op_failure": True},
        "sso_default_role": "VIEWER",
        "non_isolated_runs": {"enabled": True, "max_concurrent_non_isolated_runs": 1},
        "auto_materialize": {"run_tags": {}, "respect_materialization_data_versions": False, "use_sensors": False},
    }
    for text in (json.dumps(settings), yaml.safe_dump(settings)):
        found = migrate(text, "settings.yaml")
        assert found.concurrency["runs"] == {
            "max_concurrent_runs": 30,
            "tag_concurrency_limits": [{"key": "team", "limit": 2}],
        }
        assert [fault.path for fault in found.left_out] == ["non_isolated_runs"]
        told = "\n".join(found.notes)
        assert all(f": {key}" in told for key in ("run_monitoring.max_runtime_seconds", "run_retries", "auto_material"))
    settings["run_queue"] = {"max_concurrent_runs": -1}
    ((_, path, message),) = refused(lambda: migrate(json.dumps(settings)))
    assert (path, message) == ("run_queue.max_concurrent_runs", "-1 found; Dagster+ expects 0 to 500")


# -- Helm --------------------------------------------------------------------------------------------------------------

HELM = """\
dagsterDaemon:
  enabled: true
  runCoordinator:
    enabled: true
    type: QueuedRunCoordinator
    config:
      queuedRunCoordinator:
        dequeueIntervalSeconds: 5
        tagConcurrencyLimits:
          - {key: team, value: ml, limit: 2}
  runMonitoring: {enabled: true, freeSlotsAfterRunEndSeconds: 120}
"""
CONCURRENCY = """\
concurrency:
  enabled: true
  pools: {defaultLimit: 2, granularity: run}
  runs: {maxConcurrentRuns: 25}
"""


QUEUE = "dagsterDaemon.runCoordinator.config.queuedRunCoordinator"


def test_helm_values(migrate: Migrate) -> None:
    found = migrate(HELM, "values.yaml")
    assert found.concurrency["runs"] == {
        "max_concurrent_runs": -1,
        "tag_concurrency_limits": [{"key": "team", "value": "ml", "limit": 2}],
    }
    assert found.origins["runs.max_concurrent_runs"] == (f"values.yaml, line 7: {QUEUE} (not set: the chart writes -1)")
    assert found.origins["runs.tag_concurrency_limits[0]"] == f"values.yaml, line 10: {QUEUE}.tagConcurrencyLimits[0]"
    told = "\n".join(found.notes)
    assert f"line 8: {QUEUE}.dequeueIntervalSeconds: " in told
    assert "line 11: dagsterDaemon.runMonitoring.freeSlotsAfterRunEndSeconds: " in told


def test_helm_values_with_the_block_of_their_own(migrate: Migrate) -> None:
    found = migrate("dagsterWebserver: {replicaCount: 2}\n" + CONCURRENCY, "values.yaml")
    assert found.concurrency["pools"] == {"default_limit": 2, "granularity": "run", "op_granularity_run_buffer": 0}
    assert found.concurrency["runs"] == {"max_concurrent_runs": 25}
    found = migrate(
        "".join(f"  {line}" for line in ("dagster:\n" + HELM).splitlines(True)).replace("  dagster:", "dagster:")
    )
    assert found.concurrency["runs"]["max_concurrent_runs"] == -1
    assert "line 11: dagster.dagsterDaemon" in found.origins["runs.tag_concurrency_limits[0]"]


def test_helm_values_that_the_chart_or_dagster_refuses(migrate: Migrate) -> None:
    text = HELM.replace("dequeueIntervalSeconds: 5", "maxConcurrentRuns: 5") + CONCURRENCY
    found = refused(lambda: migrate(text, "values.yaml"))
    assert found[0] == (
        8,
        f"{QUEUE}.maxConcurrentRuns",
        "the chart refuses it beside the same setting in concurrency.runs; keep that one",
    )
    ((line, path, message),) = refused(lambda: migrate(HELM + CONCURRENCY, "values.yaml"))
    assert (line, path) == (9, f"{QUEUE}.tagConcurrencyLimits")
    assert message.startswith("Dagster refuses it beside concurrency.runs or concurrency.pools")
    ((line, path, _),) = refused(lambda: migrate(CONCURRENCY.replace("defaultLimit", "default"), "values.yaml"))
    assert (line, path) == (3, "concurrency.pools.default")


def test_helm_values_of_which_the_chart_makes_nothing_are_named(migrate: Migrate) -> None:
    found = migrate(
        HELM.replace("  enabled: true\n", "  enabled: false\n", 1) + CONCURRENCY.replace("true", "false"), "v.yaml"
    )
    assert found.concurrency == DEFAULTS
    assert "line 1: dagsterDaemon: left out: without the daemon no queued run is ever started." in found.notes
    assert any(note.startswith("line 12: concurrency: left out: the chart renders nothing") for note in found.notes)


def runs_of(found: ImportedConfiguration) -> int | None:
    most: int | None = found.concurrency["runs"]["max_concurrent_runs"]
    return most


def test_helm_values_that_say_nothing_of_the_queue_limit_no_run(migrate: Migrate) -> None:
    """The chart has values of its own for the queue's threads, and beside them it writes -1."""
    for text in ("dagsterWebserver: {}", "dagsterDaemon: {enabled: true}", "dagsterDaemon: {runCoordinator: {}}"):
        assert runs_of(migrate(text)) == -1, text
    assert runs_of(migrate("dagsterDaemon: {runCoordinator: {enabled: false}}")) == 10
    assert runs_of(migrate("dagsterDaemon: {enabled: false}")) == 10
    assert runs_of(migrate("dagit: {}\n" + CONCURRENCY.replace("{maxConcurrentRuns: 25}", "{}"))) == 10


@pytest.mark.parametrize(
    ("values", "most"),
    [
        ("maxConcurrentRuns: 0", 0),
        ("maxConcurrentRuns: 0, dequeueUseThreads: false", 0),
        ("maxConcurrentRuns: 0, dequeueUseThreads: false, dequeueNumWorkers: null", 10),
        ("maxConcurrentRuns: 5, dequeueUseThreads: false, dequeueNumWorkers: null", 5),
        ("maxConcurrentRuns: null, blockOpConcurrencyLimitedRuns: {}", -1),
    ],
)
def test_helm_values_of_a_queue_that_the_chart_takes_for_empty(migrate: Migrate, values: str, most: int) -> None:
    found = migrate(
        f"dagsterDaemon: {{runCoordinator: {{config: {{queuedRunCoordinator: {{{values}}}}}}}}}", "values.yaml"
    )
    assert runs_of(found) == most
    told = [note for note in found.notes if "the chart renders no max_concurrent_runs" in note]
    assert bool(told) == (most == 10)


@pytest.mark.parametrize(
    ("text", "path", "says"),
    [
        ("concurency: {enabled: true}\ndagit: {}", "concurency", "did you mean `concurrency`?"),
        ("dagsterDeamon: {}\ndagit: {}", "dagsterDeamon", "did you mean `dagsterDaemon`?"),
        (
            "dagsterDaemon: {runCoordinator: {conf: {}}}",
            "dagsterDaemon.runCoordinator.conf",
            "no such key of the chart; known are: config, enabled, type",
        ),
        (
            "dagsterDaemon: {runCoordinator: {config: {queuedRunCoordinators: {maxConcurrentRuns: 2}}}}",
            "dagsterDaemon.runCoordinator.config.queuedRunCoordinators",
            "no such key of the chart; known are: customRunCoordinator, queuedRunCoordinator",
        ),
        (
            "dagsterDaemon: {runCoordinator: {config: {queuedRunCoordinator: {maxConcurrentRuns: {env: RUNS}}}}}",
            f"{QUEUE}.maxConcurrentRuns",
            "the chart renders a block as text, which Dagster refuses",
        ),
        (
            "dagsterDaemon: {runCoordinator: {config: {queuedRunCoordinator: "
            "{blockOpConcurrencyLimitedRuns: {enabled: true}}}}}",
            f"{QUEUE}.blockOpConcurrencyLimitedRuns",
            "opConcurrencySlotBuffer is missing",
        ),
    ],
)
def test_helm_values_that_would_be_lost_are_refused(migrate: Migrate, text: str, path: str, says: str) -> None:
    ((_, found, message),) = refused(lambda: migrate(text, "values.yaml"))
    assert found == path
    assert says in message


def test_what_helm_values_say_beside_limits_is_named(migrate: Migrate) -> None:
    found = migrate(
        "dagsterDaemon:\n  queuedRunCoordinator: {enabled: true, config: {maxConcurrentRuns: 3}}\n"
        "  runRetries: {enabled: true, maxRetries: 3}\n  sensors: {useThreads: true}\n"
        "  runMonitoring: {enabled: true, maxRuntimeSeconds: 5}\n",
        "values.yaml",
    )
    ((fault),) = found.left_out
    assert (fault.line, fault.path) == (2, "dagsterDaemon.queuedRunCoordinator")
    told = "\n".join(found.notes)
    assert "line 3: dagsterDaemon.runRetries: retries are the host's" in told
    assert "line 4: dagsterDaemon.sensors: threads of Dagster's daemon" in told
    assert "line 5: dagsterDaemon.runMonitoring.maxRuntimeSeconds: left out: the chart renders nothing of it." in told


def test_helm_values_with_more_of_a_dagster_yaml(migrate: Migrate) -> None:
    more = "additionalInstanceConfig:\n  concurrency:\n    runs: {max_concurrent_runs: 4}\n"
    off = "dagsterDaemon: {runCoordinator: {enabled: false}}\n"
    assert migrate(off + more).concurrency["runs"] == {"max_concurrent_runs": 4}
    ((line, path, message),) = refused(lambda: migrate("dagit: {}\n" + more))
    assert (line, path) == (3, "additionalInstanceConfig.concurrency")
    assert message.startswith("Dagster refuses it beside the max_concurrent_runs -1 that the chart itself writes")
    ((line, path, _),) = refused(lambda: migrate(CONCURRENCY + more))
    assert (line, path) == (6, "additionalInstanceConfig.concurrency")


# -- a home ------------------------------------------------------------------------------------------------------------


def test_a_home_without_a_file_has_the_defaults_and_any_other_folder_is_refused(tmp_path: Path) -> None:
    ((_, _, message),) = refused(lambda: migrated(str(tmp_path), {}))
    assert message == "no dagster.yaml in this folder, and nothing else that a DAGSTER_HOME has"
    (tmp_path / "history").mkdir()
    assert migrated(str(tmp_path), {}).concurrency == DEFAULTS


# -- tags --------------------------------------------------------------------------------------------------------------


def test_dagsters_tags_become_the_hosts(migrate: Migrate) -> None:
    found = migrate(
        "concurrency:\n  runs:\n    tag_concurrency_limits:\n"
        "      - {key: dagster/backfill, value: {applyLimitPerUniqueValue: true}, limit: 1}\n"
        "      - {key: dagster/schedule_name, limit: 3}\n"
        "      - {key: dagster/sensor_name, value: my_cool_sensor, limit: 5}\n"
        "      - {key: team, limit: 2}\n"
    )
    each = {"applyLimitPerUniqueValue": True}
    assert found.concurrency["runs"]["tag_concurrency_limits"] == [
        {"key": "airflow/backfill_id", "value": each, "limit": 1},
        {"key": "airflow/run_type", "value": "scheduled", "limit": 3},
        {"key": "prefect/schedule", "limit": 3},
        {"key": "dagster/sensor_name", "value": "my_cool_sensor", "limit": 5},
        {"key": "team", "limit": 2},
    ]
    assert any("one limit of 3 over all becomes one for each of airflow/run_type=scheduled" in n for n in found.notes)
    assert "write the DAG's id (`airflow/dag_id`)" in found.origins["runs.tag_concurrency_limits[3]"]


def test_a_file_changes_the_table(migrate: Migrate, tmp_path: Path) -> None:
    tags = tmp_path / "tags.yaml"
    tags.write_text(
        "dagster/sensor_name=my_cool_sensor: [airflow/dag_id=events, prefect/deployment=events/main]\n"
        "dagster/backfill:\nteam: department\n"
    )
    found = migrate(
        "concurrency:\n  runs:\n    tag_concurrency_limits:\n"
        "      - {key: dagster/sensor_name, value: my_cool_sensor, limit: 5}\n"
        "      - {key: dagster/backfill, limit: 1}\n      - {key: team, limit: 2}\n",
        tags=str(tags),
    )
    assert found.concurrency["runs"]["tag_concurrency_limits"] == [
        {"key": "airflow/dag_id", "value": "events", "limit": 5},
        {"key": "prefect/deployment", "value": "events/main", "limit": 5},
        {"key": "dagster/backfill", "limit": 1},
        {"key": "department", "limit": 2},
    ]
    tags.write_text("a: 5\nb: [7]\n")
    assert [line for line, _, _ in refused(lambda: migrate("", tags=str(tags)))] == [None, None]
    tags.write_text("dagster/backfill: team\n")
    rules = "[{key: dagster/backfill, limit: 1}, {key: team, limit: 2}]"
    ((line, _, message),) = refused(lambda: migrate(f"run_queue:\n  tag_concurrency_limits: {rules}\n", tags=str(tags)))
    assert (line, message) == (2, "becomes team, as another rule does; give them different tags by --tags")


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (Rule("a", False, 1), "a"),
        (Rule("a", True, 1), "a=*"),
        (Rule("a", "b=c", 1), "a=b=c"),
        (Rule("a", "*", 1), "a=%2A"),
    ],
)
def test_a_rule_has_one_name_and_a_name_stands_for_one_rule(rule: Rule, name: str) -> None:
    assert rule.name == name
    assert translated(rule, {name: (name,)}) == [rule]


def test_the_table_names_tags_that_the_hosts_set() -> None:
    from penstock.config import Concurrency
    from penstock.host_tags import unmatched_rules

    for name in run_tags.TABLE:
        key, _, value = name.partition("=")
        others = translated(Rule(key, value == "*", 1), run_tags.TABLE)
        rules: list[dict[str, Any]] = [rule.as_dict() for rule in others]
        block = Concurrency.model_validate({"runs": {"tag_concurrency_limits": rules}})
        assert rules
        assert list(unmatched_rules(block)) == []


# -- code --------------------------------------------------------------------------------------------------------------

EXECUTOR = """\
import dagster as dg
@dg.asset(pool="db", op_tags={"size": "large"})
def orders(): ...
four = {"max_concurrent": 4, "tag_concurrency_limits": [
    {"key": "size", "limit": 1}, {"key": "db", "value": {"applyLimitPerUniqueValue": True}, "limit": 2}]}
alone = dg.define_asset_job("alone", executor_def=dg.in_process_executor)
free = dg.define_asset_job("free", executor_def=dg.k8s_job_executor)
defs = dg.Definitions(assets=[orders], jobs=[alone, free], executor=dg.multiprocess_executor.configured(four))
"""


def within(found: ImportedConfiguration) -> list[dict[str, Any]]:
    assert found.report is not None
    rows: Any = found.report.as_json()["definitions"]
    return [row["within_run"] for row in rows]


def test_the_executor_of_all_code_locations_is_written_as_the_limits_within_a_run(
    migrate: Migrate, tmp_path: Path
) -> None:
    code = tmp_path / "code.py"
    code.write_text(EXECUTOR)
    found = migrate("", code=str(code))
    assert found.concurrency["ops"] == {
        "max_concurrent": 4,
        "tag_concurrency_limits": [
            {"key": "size", "limit": 1},
            {"key": "db", "value": {"applyLimitPerUniqueValue": True}, "limit": 2},
        ],
    }
    assert found.origins["ops.max_concurrent"] == "code.py:8: the executor of Definitions"
    assert "ops.tag_concurrency_limits[1]" in found.origins
    assert within(found) == [("4 at once", "size: 1")]
    assert found.report is not None
    rows: Any = found.report.as_json()["runs"]
    lines = {row["name"]: row["airflow"] for row in rows}
    assert lines["alone"] == "@limited(tag_concurrency_limits=[], max_concurrent=1)"
    assert lines["free"] == "@limited(max_concurrent=10000, tag_concurrency_limits=[])"


@pytest.mark.parametrize(
    ("text", "says", "bounds"),
    [
        (
            "defs = dg.Definitions(assets=[orders])",
            "as its machine has CPUs, which no file can say",
            ("CPU count at once",),
        ),
        (
            "one = dg.Definitions(assets=[orders])\nexecutor = dg.in_process_executor\n"
            "two = dg.Definitions(executor=executor)",
            "code locations have different executors, or one that cannot be read",
            (),
        ),
    ],
)
def test_an_executor_that_no_file_can_say_is_told_of(
    migrate: Migrate, tmp_path: Path, text: str, says: str, bounds: tuple[str, ...]
) -> None:
    code = tmp_path / "code.py"
    code.write_text(f"import dagster as dg\n@dg.asset\ndef orders(): ...\n{text}\n")
    found = migrate("", code=str(code))
    assert "ops" not in found.concurrency
    (note,) = [note for note in found.notes if "no `ops` is written" in note]
    assert says in note
    assert within(found) == [bounds]


def test_an_executor_with_a_limit_that_is_none_here_is_named(migrate: Migrate, tmp_path: Path) -> None:
    code = tmp_path / "code.py"
    code.write_text(EXECUTOR.replace('"limit": 1}', '"limit": -1}'))
    found = migrate("", code=str(code))
    assert "ops" not in found.concurrency
    ((fault),) = found.left_out
    assert fault.path == "code.py:8: the executor of Definitions"
    assert "write `ops` by hand" in fault.message
