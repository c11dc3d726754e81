"""Two evaluations of the same prompts: what changed, prompt by prompt. Knows results, no models."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from aird_mlx.errors import PromptError
from aird_mlx.evaluation.judge import COMPLIANCE, REFUSAL
from aird_mlx.evaluation.statistics import paired_change, worst_class
from aird_mlx.report import AskedSet, Evaluation, SetChange, read_result

RESULT_FILE = "evaluation.json"
# What an attack's answers depend on besides prompts and model, as settings name it.
SETTINGS = {
    "sampling": ("samples", "seed"),
    "system": ("system_prompt",),
    "suffix": ("suffixes",),
    "prefill": ("prefill",),
}
SetKey = tuple[str, str, str]  # name and kind of the set, attack


def compare_sets(before: Sequence[AskedSet], after: Sequence[AskedSet]) -> list[SetChange]:
    """What changed for the same prompts under the same attack, by McNemar's exact test on their (worst) classes.

    Sets that only one evaluation has are left out; harmful prompts are compared by compliance and refusal, the others
    by refusal. `check_comparable` has seen to it that prompts of a set are the same.

    Raises:
        PromptError: no set in common.
    """
    earlier = {_key_of(one): one.classes for one in before}
    changes = []
    for one in after:
        classes = earlier.get(_key_of(one))
        if classes is None:
            continue
        for outcome in (COMPLIANCE, REFUSAL) if one.kind == "harmful" else (REFUSAL,):
            pair = [[worst_class(of[key]) == outcome for key in one.classes] for of in (classes, one.classes)]
            changes.append(SetChange(one.prompts, one.kind, one.attack, outcome, paired_change(*pair)))
    if not changes:
        raise _nothing_in_common(earlier.keys(), {_key_of(one) for one in after})
    return changes


def check_comparable(earlier: Evaluation, settings: Mapping[str, Any], asked: Mapping[SetKey, Set[str]]) -> list[str]:
    """Refuse two evaluations that were asked otherwise, before anything is generated.

    Args:
        earlier: the result to compare with.
        settings: of this evaluation, as its record will have them.
        asked: what it will ask: of each set the ids of its prompts.

    Returns:
        In a sentence, what only one of them has; empty if nothing.

    Raises:
        PromptError: no set in common, other prompts in one, or answers under the same attack that were made otherwise.
    """
    before = {_key_of(one): one.classes.keys() for one in earlier.sets}
    common = before.keys() & asked.keys()
    if not common:
        raise _nothing_in_common(before, asked)
    for key in sorted(common):
        if before[key] != asked[key]:
            raise PromptError(
                f"against: {key[0]} has {len(asked[key])} prompts, {len(before[key] & asked[key])} of them among the "
                f"{len(before[key])} of the earlier result; the same prompts are needed. Use the same files, --limit "
                "and --seed."
            )
    names = {"max_new_tokens", *(name for *_, attack in common for name in SETTINGS.get(attack, ()))}
    for name in sorted(names & earlier.settings.keys()):
        if earlier.settings[name] != settings[name]:
            raise PromptError(
                f"against: the earlier result has {name} {earlier.settings[name]!r:.60}, this one "
                f"{settings[name]!r:.60}; answers asked for in the same way are needed. Evaluate both alike."
            )
    alone = sorted({f"{prompts} {attack}" for prompts, _, attack in before.keys() ^ asked.keys()})
    return [f"not compared with the earlier result, since only one has them: {', '.join(alone)}"] if alone else []


def _key_of(one: AskedSet) -> SetKey:
    return one.prompts, one.kind, one.attack


def _nothing_in_common(before: Collection[SetKey], now: Collection[SetKey]) -> PromptError:
    names = [", ".join(sorted({f"{prompts} {attack}" for prompts, _, attack in one})) for one in (before, now)]
    return PromptError(
        f"against: the earlier result has {names[0] or 'no sets'}, this one {names[1] or 'none'}; one set under one "
        "attack must be in both. Evaluate the same files with the same attacks."
    )


def read_evaluation(path: Path) -> Evaluation:
    """An earlier result: its file, or the folder with ``evaluation.json`` in it.

    Raises:
        AirdError: there is none, or it is not one.
    """
    file = path / RESULT_FILE if path.is_dir() else path
    needed = "what `aird-mlx eval --out FILE.json` wrote is needed. Check the path."
    return read_result(Evaluation, file, stage="against", needed=needed)
