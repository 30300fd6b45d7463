"""Dagster's parser and ours on the same files: accepted or refused alike, and every value in force the same.

Where they differ it is one of DIFFERENCES, and the page for those who come from Dagster has it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from dagster_files import DIFFERENCES, generated
from dagster_judge import Effective, ours, theirs

ENVIRON = {"RUNS": "7", "WORDS": "seven", "NEGATIVE": "-1"}

SAME = [
    "",
    "{}",
    "# nothing but words\n",
    "concurrency: {}",
    "concurrency: {pools: {default_limit: 1}}",
    "concurrency: {pools: {default_limit: 0}}",
    "concurrency: {pools: {default_limit: 1000}}",
    "concurrency: {pools: {default_limit: 1001}}",
    "concurrency: {pools: {default_limit: -1}}",
    "concurrency: {pools: {default_limit: '1'}}",
    "concurrency: {pools: {default_limit: 1.0}}",
    "concurrency: {pools: {default_limit: true}}",
    "concurrency: {pools: {default_limit: }}",
    "concurrency: {pools: {default_limit: {env: RUNS}}}",
    "concurrency: {pools: {granularity: run}}",
    "concurrency: {pools: {granularity: 'op'}}",
    "concurrency: {pools: {granularity: RUN}}",
    "concurrency: {pools: {granularity: ''}}",
    "concurrency: {pools: {granularity: }}",
    "concurrency: {pools: {granularity: [run]}}",
    "concurrency: {pools: {op_granularity_run_buffer: 3}}",
    "concurrency: {pools: {op_granularity_run_buffer: many}}",
    "concurrency: {pools: {limits: {database: 2}}}",
    "concurrency: {pools: 5}",
    "concurrency: {pools: []}",
    "concurrency: [pools]",
    "concurrency: 5",
    "concurrency: {default_op_concurrency_limit: 3}",
    "concurrency: {default_op_concurrency_limit: 3, pools: {default_limit: 3}}",
    "concurrency: {default_op_concurrency_limit: 3, pools: {granularity: run}}",
    "concurrency: {default_op_concurrency_limit: 2000}",
    "concurrency: {default_op_concurrency_limit: }",
    "concurrency: {default_op_concurrency_limit: 3, runs: {max_concurrent_runs: 2}}",
    "concurrency: {runs: {}}",
    "concurrency: {runs: {max_concurrent_runs: 15}}",
    "concurrency: {runs: {max_concurrent_runs: 0}}",
    "concurrency: {runs: {max_concurrent_runs: -1}}",
    "concurrency: {runs: {max_concurrent_runs: {env: RUNS}}}",
    "concurrency: {runs: {max_concurrent_runs: many}}",
    "concurrency: {runs: {tag_concurrency_limits: }}",
    "concurrency: {runs: {tag_concurrency_limits: []}}",
    "concurrency: {runs: {tag_concurrency_limits: {}}}",
    "concurrency: {runs: {tag_concurrency_limits: [{key: a, limit: 1}]}}",
    "concurrency: {runs: {tag_concurrency_limits: [{key: a, value: b, limit: 1}, {key: a, limit: 2}]}}",
    "concurrency: {runs: {tag_concurrency_limits: [{key: a, value: {applyLimitPerUniqueValue: true}, limit: 1}]}}",
    "concurrency: {runs: {tag_concurrency_limits: [{key: a, value: {applyLimitPerUniqueValue: false}, limit: 1}]}}",
    "concurrency: {runs: {tag_concurrency_limits: [{key: a, value: {applyLimitPerUniqueValue: 1}, limit: 1}]}}",
    "concurrency: {runs: {tag_concurrency_limits: [{key: a, value: {}, limit: 1}]}}",
    "concurrency: {runs: {tag_concurrency_limits: [{key: a, value: , limit: 1}]}}",
    "concurrency: {runs: {tag_concurrency_limits: [{key: a, value: 7, limit: 1}]}}",
    "concurrency: {runs: {tag_concurrency_limits: [{key: a, value: 2024-01-31, limit: 1}]}}",
    "concurrency: {runs: {tag_concurrency_limits: [{key: a, value: yes, limit: 1}]}}",
    "concurrency: {runs: {tag_concurrency_limits: [{key: a, value: '*', limit: 1}]}}",
    "concurrency: {runs: {tag_concurrency_limits: [{key: 7, limit: 1}]}}",
    "concurrency: {runs: {tag_concurrency_limits: [{limit: 1}]}}",
    "concurrency: {runs: {tag_concurrency_limits: [{key: a}]}}",
    "concurrency: {runs: {tag_concurrency_limits: [{key: a, limit: 1, more: 2}]}}",
    "concurrency: {runs: {max_concurrent_run: 3}}",
    "concurrency: {ops: {max_concurrent: 4}}",
    "run_queue: {}",
    "run_queue: {max_concurrent_runs: 3}",
    "run_queue: {max_concurrent_runs: -1}",
    "run_queue: {max_concurrent_runs: -2}",
    "run_queue: {max_concurrent_runs: {env: RUNS}}",
    "run_queue: {max_concurrent_runs: {env: NEGATIVE}}",
    "run_queue: {max_concurrent_runs: {env: WORDS}}",
    "run_queue: {max_concurrent_runs: {env: NOT_SET_ANYWHERE}}",
    "run_queue: {max_concurrent_runs: {env: RUNS, or: 3}}",
    "run_queue: {max_concurrent_runs: }",
    "run_queue: {tag_concurrency_limits: [{key: a, limit: {env: RUNS}}]}",
    "run_queue: {tag_concurrency_limits: [{key: a, limit: 3}], dequeue_interval_seconds: 3, dequeue_use_threads: true}",
    "run_queue: {dequeue_use_threads: {env: RUNS}}",
    "run_queue: {block_op_concurrency_limited_runs: {}}",
    "run_queue: {block_op_concurrency_limited_runs: {enabled: true}}",
    "run_queue: {block_op_concurrency_limited_runs: {enabled: true, op_concurrency_slot_buffer: 2}}",
    "run_queue: {block_op_concurrency_limited_runs: {enabled: false}}",
    "run_queue: {block_op_concurrency_limited_runs: {enabled: false, op_concurrency_slot_buffer: 2}}",
    "run_queue: {block_op_concurrency_limited_runs: {enabled: false, op_concurrency_slot_buffer: 0}}",
    "run_queue: {block_op_concurrency_limited_runs: {enabled: 1}}",
    "run_queue: {block_op_concurrency_limited_runs: {op_concurrency_slot_buffer: 2}}",
    "run_queue: {max_concurrent_run: 3}",
    "run_queue: {max_concurrent_runs: 3}\nconcurrency: {runs: {max_concurrent_runs: 3}}",
    "run_queue: {max_concurrent_runs: 3}\nconcurrency: {pools: {default_limit: 3}}",
    "run_queue: {max_concurrent_runs: 3}\nconcurrency: {default_op_concurrency_limit: 3}",
    "run_queue: {max_concurrent_runs: 3}\nconcurrency: {}",
    "run_queue: {tag_concurrency_limits: []}\nconcurrency: {runs: {}}",
    "run_queue: {block_op_concurrency_limited_runs: {enabled: true, op_concurrency_slot_buffer: 1}}\n"
    "concurrency: {pools: {op_granularity_run_buffer: 1}}",
    "run_queue: {block_op_concurrency_limited_runs: {enabled: false}}\n"
    "concurrency: {pools: {op_granularity_run_buffer: 1}}",
    "run_queue: {dequeue_interval_seconds: 3}\nconcurrency: {runs: {max_concurrent_runs: 3}}",
    "run_queue: {}\nrun_coordinator: {module: dagster, class: QueuedRunCoordinator}",
    "run_coordinator: {module: dagster, class: QueuedRunCoordinator}",
    "run_coordinator:\n  module: dagster.core.run_coordinator\n  class: QueuedRunCoordinator\n"
    "  config: {max_concurrent_runs: 4}",
    "run_coordinator: {module: dagster, class: QueuedRunCoordinator, config: {max_concurrent_runs: {env: RUNS}}}",
    "run_coordinator: {module: dagster, class: QueuedRunCoordinator, config: {max_concurrent_runs: {env: NOWHERE}}}",
    "run_coordinator: {module: dagster, class: QueuedRunCoordinator, config: {nonsense: 1}}",
    "run_coordinator: {module: dagster, class: QueuedRunCoordinator, config: }",
    "run_coordinator: {module: dagster, class: QueuedRunCoordinator, config: {max_concurrent_runs: 4}}\n"
    "concurrency: {runs: {max_concurrent_runs: 4}}",
    "run_coordinator:\n  module: dagster\n  class: QueuedRunCoordinator\n"
    "  config: {tag_concurrency_limits: [{key: a, limit: 1}]}\n"
    "concurrency: {default_op_concurrency_limit: 1}",
    "run_coordinator: {module: dagster._core.run_coordinator, class: DefaultRunCoordinator}",
    "run_coordinator: {module: dagster._core.run_coordinator, class: DefaultRunCoordinator}\n"
    "concurrency: {pools: {default_limit: 2, granularity: run}}",
    "run_coordinator: {class: QueuedRunCoordinator}",
    "run_coordinator: {module: dagster}",
    "run_coordinator: {module: dagster, class: QueuedRunCoordinator, more: 1}",
    "run_coordinator: QueuedRunCoordinator",
    "run_monitoring: {enabled: true, free_slots_after_run_end_seconds: 300, max_runtime_seconds: 7200}",
    "run_monitoring: {free_slots_after_run_end_seconds: soon}",
    "run_monitoring: {free_slots: 3}",
    "telemetry: {enabled: false}\npython_logs: {python_log_level: INFO}",
    "telemetri: {enabled: false}",
    "- concurrency",
    "concurrency",
    "concurrency: {pools: {default_limit: 1}",
    "concurrency:\n\tpools: {}",
    "\ufeffconcurrency: {runs: {max_concurrent_runs: 3}}",
    "concurrency: {}\n---\nconcurrency: {}\n",
    "concurrency: {pools: {default_limit: \0}}",
    "concurrency: {runs: {max_concurrent_runs: !odd 3}}",
]

DIFFERENT = {
    "concurrency:": "a block with nothing below it is absent",
    "concurrency: {pools: }": "a block with nothing below it is absent",
    "concurrency: {runs: }": "a block with nothing below it is absent",
    "run_queue:": "a block with nothing below it is absent",
    "run_monitoring:": "a block with nothing below it is absent",
    "concurrency: {runs: {max_concurrent_runs: -5}}": "a limit is never negative",
    "concurrency: {pools: {op_granularity_run_buffer: -1}}": "a limit is never negative",
    "run_queue: {tag_concurrency_limits: [{key: a, limit: -1}]}": "a limit is never negative",
    "run_queue: {max_concurrent_runs: 20000}": "a limit is at most 10000",
    "concurrency: {runs: {max_concurrent_runs: 20000}}": "a limit is at most 10000",
    "concurrency: {runs: {tag_concurrency_limits: [{key: a, limit: 1}, {key: a, limit: 2}]}}": "the same rule twice",
    "run_queue: {tag_concurrency_limits: [{key: '', limit: 1}]}": "a tag's key is not empty",
    "run_queue: {dequeue_interval_seconds: {env: NOWHERE}}": "a variable that bears on no limit need not be set",
}
# Of YAML itself: we refuse these wherever they bear on limits.
REFUSED = {
    "concurrency: {}\nconcurrency: {}": "stands twice",
    "concurrency: {runs: {max_concurrent_runs: 1, max_concurrent_runs: 2}}": "stands twice",
    "concurrency: {runs: &r {max_concurrent_runs: 1}, pools: {<<: *r}}": "merge keys",
}


@pytest.fixture
def both(tmp_path: Path) -> Callable[[str], tuple[Effective | str, Effective | str]]:
    """Both sides' verdicts on a text."""

    def judge(text: str) -> tuple[Effective | str, Effective | str]:
        (tmp_path / "dagster.yaml").write_text(text, encoding="utf-8")
        return theirs(tmp_path, ENVIRON), ours(tmp_path, ENVIRON)

    return judge


Both = Callable[[str], tuple[Effective | str, Effective | str]]


@pytest.mark.parametrize("text", SAME)
def test_refused_alike_or_the_same_values(both: Both, text: str) -> None:
    they, we = both(text)
    assert isinstance(they, str) == isinstance(we, str), (they, we)
    assert isinstance(they, str) or they == we


@pytest.mark.parametrize("text", DIFFERENT)
def test_the_differences_are_these(both: Both, text: str) -> None:
    they, we = both(text)
    refused_by_us, applies = DIFFERENCES[DIFFERENT[text]]
    assert applies(yaml.safe_load(text))
    assert isinstance(we, str) == refused_by_us, we
    assert isinstance(they, str) != refused_by_us, they


@pytest.mark.parametrize("text", REFUSED)
def test_what_yaml_lets_pass_is_named(both: Both, text: str) -> None:
    _, we = both(text)
    assert isinstance(we, str)
    assert REFUSED[text] in we


@pytest.mark.parametrize("seed", range(10))
def test_generated_files(both: Both, seed: int) -> None:
    """Forty files of each seed, most of them broken somewhere."""
    choice = random.Random(seed)
    accepted = refused = 0
    for _ in range(40):
        document = generated(choice)
        they, we = both(yaml.safe_dump(document))
        if they == we:
            accepted += 1
        elif isinstance(they, str) and isinstance(we, str):
            refused += 1
        else:
            explained = [
                name
                for name, (by_us, applies) in DIFFERENCES.items()
                if applies(document) and isinstance(we, str) is by_us and isinstance(they, str) is not by_us
            ]
            assert explained, (document, they, we)
    assert accepted
    assert refused
