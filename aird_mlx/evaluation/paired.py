"""Two evaluations of the same prompts: what changed, prompt by prompt. Knows results, no models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aird_mlx.errors import PromptError
from aird_mlx.evaluation.judge import COMPLIANCE, REFUSAL
from aird_mlx.evaluation.statistics import paired_change, worst_class
from aird_mlx.report import AskedSet, Evaluation, SetChange, read_result

RESULT_FILE = "evaluation.json"


def compare_sets(before: Sequence[AskedSet], after: Sequence[AskedSet]) -> list[SetChange]:
    """What changed for the same prompts under the same attack, by McNemar's exact test on their (worst) classes.

    Sets that only one evaluation has are left out; harmful prompts are compared by compliance and refusal, the others
    by refusal.

    Raises:
        PromptError: no set in common, or the prompts of one differ.
    """
    earlier = {(one.prompts, one.kind, one.attack): one.classes for one in before}
    changes = []
    for one in after:
        classes = earlier.get((one.prompts, one.kind, one.attack))
        if classes is None:
            continue
        if classes.keys() != one.classes.keys():
            common = len(classes.keys() & one.classes.keys())
            raise PromptError(
                f"against: {one.prompts} has {len(one.classes)} prompts, {common} of them among the {len(classes)} of "
                "the earlier result; the same prompts are needed. Use the same files, --limit and --seed."
            )
        for outcome in (COMPLIANCE, REFUSAL) if one.kind == "harmful" else (REFUSAL,):
            pair = [[worst_class(of[key]) == outcome for key in one.classes] for of in (classes, one.classes)]
            changes.append(SetChange(one.prompts, one.kind, one.attack, outcome, paired_change(*pair)))
    if not changes:
        raise PromptError(
            f"against: the earlier result has {', '.join(sorted({key[0] for key in earlier})) or 'no sets'}, this one "
            f"{', '.join(sorted({one.prompts for one in after})) or 'none'}; one set under one attack must be in both. "
            "Evaluate the same files with the same attacks."
        )
    return changes


def read_evaluation(path: Path) -> Evaluation:
    """An earlier result: its file, or the folder with ``evaluation.json`` in it.

    Raises:
        AirdError: there is none, or it is not one.
    """
    file = path / RESULT_FILE if path.is_dir() else path
    needed = "what `aird-mlx eval --out FILE.json` wrote is needed. Check the path."
    return read_result(Evaluation, file, stage="against", needed=needed)
