"""Which tags of the hosts stand for Dagster's: a table, and what it makes of a rule. A file can change it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from penstock.config_file import read_document, read_text
from penstock.errors import ConfigError, Fault
from penstock.host_tags import DAGSTER_TAGS

EACH, STAR = "*", "%2A"  # how the value `*` itself is written
TABLE: Mapping[str, tuple[str, ...]] = {
    "dagster/backfill": ("airflow/run_type=backfill",),
    "dagster/backfill=*": ("airflow/backfill_id=*",),
    "dagster/schedule_name": ("airflow/run_type=scheduled", "prefect/schedule"),
    "dagster/schedule_name=*": ("airflow/dag_id=*", "prefect/deployment=*"),
    "dagster/sensor_name": ("airflow/run_type=asset_triggered",),
}
"""Rule → the rules that say the same of Airflow's and of Prefect's runs. KEY: any value, counted together; KEY=*: each
value for itself; KEY=VALUE: this one. A rule that is not in it stays as it is."""

FROM_CONF = (
    "in Airflow `run_tag_keys` names keys of a run's conf or params that become its tags; in Prefect tag the flow run"
)
WHO_RUNS = "write the DAG's id (`airflow/dag_id`) or the deployment's name (`prefect/deployment`) that"
BY_HAND: Mapping[str, str] = {
    "dagster/asset_partition_range_end": FROM_CONF,
    "dagster/asset_partition_range_start": FROM_CONF,
    "dagster/backfill": "the id of a backfill is another one in each host, so no rule on one id can be carried over",
    "dagster/code_location": "tag the DAGs and deployments of each code location, such as `dagster/code_location:etl`",
    "dagster/partition": FROM_CONF,
    "dagster/partition_set": "tag the DAGs and the deployments that are meant",
    "dagster/priority": "a priority is a number of the claim: `priority=` of `limited`, `priority_weight` of Airflow",
    "dagster/schedule_name": f"{WHO_RUNS} runs on it now",
    "dagster/sensor_name": f"{WHO_RUNS} is triggered now",
}
"""Tag key → what to do for a rule on it that the table does not translate."""
OTHERWISE = "tag the DAGs, deployments or flow runs that are meant"


@dataclass(frozen=True, slots=True)
class Rule:
    """A run-tag rule as both sides mean it. `value`: a text, True for each value, False for any together."""

    key: str
    value: str | bool
    limit: int

    @property
    def name(self) -> str:
        """As the table names it."""
        if self.value is True:
            return f"{self.key}={EACH}"
        return self.key if self.value is False else f"{self.key}={STAR if self.value == EACH else self.value}"

    def as_dict(self) -> dict[str, Any]:
        """As a penstock.yaml has it."""
        if self.value is False:
            return {"key": self.key, "limit": self.limit}
        value = {"applyLimitPerUniqueValue": True} if self.value is True else self.value
        return {"key": self.key, "value": value, "limit": self.limit}


def translated(rule: Rule, table: Mapping[str, tuple[str, ...]]) -> list[Rule]:
    """The rules that the table has for it; none: it stays as it is."""
    found = []
    for name in table.get(rule.name, ()):
        key, given, value = name.partition("=")
        found.append(Rule(key, value == EACH or value.replace(STAR, EACH) if given else False, rule.limit))
    return found


def advice(rule: Rule) -> str | None:
    """What to do for a rule on one of Dagster's own tags that stays as it is; None: it is on anybody's own tag."""
    return BY_HAND.get(rule.key, OTHERWISE) if rule.key.startswith(DAGSTER_TAGS) else None


def read_table(path: str) -> dict[str, tuple[str, ...]]:
    """The table with the changes of a YAML file: rule → one, several, or null to leave it. Raises ConfigError."""
    document, lines, faults = read_document(read_text(path))
    table = dict(TABLE)
    for name, value in (document or {}).items():
        rules = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(rule, str) and rule.partition("=")[0] for rule in rules):
            faults.append(
                Fault("KEY, KEY=VALUE, KEY=*, a list of them, or nothing is expected", lines.of((name,)), name)
            )
            continue
        table[name] = tuple(rules)
    if faults:
        raise ConfigError([Fault(f"{path}: {fault}") for fault in faults])
    return table
