"""How often a model refuses, by kind of prompt, judged on the answers it generates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from aird_mlx.evaluation.generation import BATCH_SIZE, decode, generate_answers
from aird_mlx.evaluation.judge import INCOHERENT, REFUSAL, judge_answer
from aird_mlx.evaluation.statistics import wilson_rate
from aird_mlx.model import ChatModel
from aird_mlx.prompts import KINDS, render_prompt
from aird_mlx.report import RefusalRates


def measure_refusals(
    model: ChatModel,
    prompts: Mapping[str, Sequence[str]],
    *,
    max_new_tokens: int = 128,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> RefusalRates:
    """Generate an answer to every prompt, judge it, and count refusals; see `judge_prompts`."""
    return refusal_rates(
        *judge_prompts(model, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress)
    )


def judge_prompts(
    model: ChatModel,
    prompts: Mapping[str, Sequence[str]],
    *,
    max_new_tokens: int = 128,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[str], list[str]]:
    """Generate an answer to every prompt and judge it.

    Args:
        model: read only.
        prompts: prompts by kind (``harmful``, ``harmless``, ``twin``); a kind may be missing or empty.
        max_new_tokens: longer answers are cut.
        batch_size: answers generated side by side.
        progress: called with (prompts done, prompts).

    Returns:
        The kind of every prompt and the class of its answer, kind by kind, in the order given.
    """
    asked = [(kind, prompt) for kind in KINDS for prompt in prompts.get(kind, ())]
    ids = [render_prompt(model.tokenizer, prompt) for _, prompt in asked]
    answers = generate_answers(model, ids, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress)
    return [kind for kind, _ in asked], [judge_answer(decode(model, answer)) for answer in answers]


def refusal_rates(kinds: Sequence[str], classes: Sequence[str]) -> RefusalRates:
    """Count judged answers by kind: rates with n and Wilson 95 % intervals.

    >>> refusal_rates(["harmful", "harmless"], ["refusal", "compliance"]).harmful.rate
    1.0
    """
    rates = {}
    for kind in KINDS:
        mine = [judged for asked, judged in zip(kinds, classes, strict=True) if asked == kind]
        rates[kind] = wilson_rate(mine.count(REFUSAL), len(mine))
    return RefusalRates(**rates, incoherent=wilson_rate(list(classes).count(INCOHERENT), len(classes)))
