"""lm-eval through mlx-lm's wrapper, offline, on a task of our own: it counts as our own multiple choice does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aird_mlx.errors import UsageError
from aird_mlx.evaluate import EvaluationSettings, evaluate_model

TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {path}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list:
  - metric: acc
  - metric: acc_norm
"""


def test_lm_eval_gives_the_accuracies_of_our_own_multiple_choice(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval.tasks")
    verbs = ["bake", "water", "clean", "paint", "open", "carry", "sell", "wash"]
    things = ["my bread", "the garden fence and the gate", "a small boat", "my old red car"]
    rows = [
        {"query": f"Question: What do I {verb}?", "choices": things, "gold": index % 4}
        for index, verb in enumerate(verbs)
    ]
    questions = tmp_path / "q.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = tmp_path / "own.yaml"
    task.write_text(TASK.format(name="own_task", path=questions))
    found = evaluate_model(
        EvaluationSettings(model="demo", refusals=False, multiple_choice=(questions,), tasks=(str(task),))
    )
    ours = found.multiple_choice[0]
    assert {score.metric: score.value for score in found.tasks} == {
        "acc": pytest.approx(ours.accuracy.rate),
        "acc_norm": pytest.approx(ours.accuracy_normalized.rate),
    }
    assert {(score.task, score.n) for score in found.tasks} == {("own_task", 8)}


def test_an_unknown_task_is_one_line() -> None:
    pytest.importorskip("lm_eval.tasks")
    with pytest.raises(UsageError, match="'no-such-task'"):
        evaluate_model(EvaluationSettings(model="demo", refusals=False, tasks=("no-such-task",)))
