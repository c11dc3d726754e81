"""Multiple-choice questions: the choice a model deems likeliest, as lm-eval's ``acc`` and ``acc_norm`` count it.

Two kinds of rows: ``query, choices, gold`` (ARC, PIQA, BoolQ, OpenBookQA), where the endings differ, and
``context_options, continuation, gold`` (WinoGrande, scored by its ending), where the beginnings do. This module knows
log-likelihoods, not models.
Source: Gao et al., lm-evaluation-harness, ``api/task.py`` (MultipleChoiceTask) and ``api/model.py`` (_encode_pair).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aird_mlx.errors import PromptError
from aird_mlx.evaluation.statistics import wilson_rate
from aird_mlx.report import MultipleChoiceFigures


@dataclass(frozen=True)
class Question:
    """(context, ending) per choice, and which of them is right."""

    choices: tuple[tuple[str, str], ...]
    gold: int


def read_questions(path: Path, limit: int | None = None, seed: int = 0) -> list[Question]:
    """Read a .jsonl file of questions; with ``limit``, a sample of so many by seed, in the file's order.

    Raises:
        PromptError: missing, unreadable, empty, or a row that is no question.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(
            f"multiple choice: {path} cannot be read ({error}); UTF-8 JSON lines are needed. Check the path."
        ) from error
    questions = []
    for number, line in enumerate(lines, 1):
        try:
            questions.append(parse_question(json.loads(line)))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise PromptError(
                f"multiple choice: {path} row {number} is no question ({reason}); query, choices, gold or "
                "context_options, continuation, gold are needed. Mend the row."
            ) from error
    if not questions:
        raise PromptError(f"multiple choice: {path} holds no questions; at least one is needed. Fill the file.")
    if limit is not None and limit < len(questions):
        kept = random.Random(f"{seed}:{path.name}").sample(range(len(questions)), limit)
        questions = [questions[index] for index in sorted(kept)]
    return questions


def parse_question(row: Any) -> Question:
    """A row of either kind.

    Where the query is put as a question (``Question: ...``) the choices follow ``Answer:``, as these tasks are asked;
    otherwise they continue the query.

    Raises:
        KeyError, TypeError, ValueError: it is none.

    >>> parse_question({"query": "Question: 1 + 1?", "choices": ["2", "3"], "gold": 0}).choices[1]
    ('Question: 1 + 1?\\nAnswer:', ' 3')
    """
    if "context_options" in row:
        pairs = [(_text(one).rstrip(), f" {_text(row['continuation']).lstrip()}") for one in row["context_options"]]
    else:
        query = _text(row["query"]).rstrip()
        is_asked = query.startswith("Question:") or "\nQuestion:" in query
        context = f"{query}\nAnswer:" if is_asked and not query.endswith("Answer:") else query
        pairs = [(context, f" {_text(one).strip()}") for one in row["choices"]]
    gold = row["gold"]
    if len(pairs) < 2 or not all(context and ending.strip() for context, ending in pairs):
        raise ValueError("fewer than two choices, or an empty one")
    if type(gold) is not int or not 0 <= gold < len(pairs):
        raise ValueError(f"gold is {gold!r} of {len(pairs)} choices")
    return Question(tuple(pairs), gold)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} where text is expected")
    return value


def answer_questions(
    name: str,
    questions: Sequence[Question],
    *,
    encode: Callable[[str], list[int]],
    log_likelihoods: Callable[[list[list[int]], list[int]], list[float]],
    context_length: int | None,
) -> MultipleChoiceFigures:
    """Ask every question and count the right answers.

    Args:
        name: of the set.
        questions: at least one.
        encode: text to token ids, with the tokens the tokenizer puts before a text.
        log_likelihoods: from sequences and the first token of each that counts to their log-likelihoods, nats.
        context_length: longest sequence; longer contexts lose their beginning, as in lm-eval. None: no limit.
    """
    sequences, first, truncated = [], [], 0
    for context, ending in (pair for question in questions for pair in question.choices):
        # An ending is what the whole has after the context's tokens, so that a token across the border is the whole's.
        whole = encode(context + ending)
        start = min(len(encode(context)), len(whole) - 1)
        cut = max(0, len(whole) - (context_length or len(whole)))
        truncated += cut > 0
        sequences.append(whole[cut:])
        first.append(max(1, start - cut))
    scores = iter(log_likelihoods(sequences, first))
    right = right_normalized = 0
    for question in questions:
        mine = [next(scores) for _ in question.choices]
        right += likeliest(mine) == question.gold
        right_normalized += (
            likeliest([score / len(ending.strip()) for score, (_, ending) in zip(mine, question.choices, strict=True)])
            == question.gold
        )
    accuracy, normalized = wilson_rate(right, len(questions)), wilson_rate(right_normalized, len(questions))
    assert accuracy is not None and normalized is not None
    return MultipleChoiceFigures(name, accuracy, normalized, truncated)


def likeliest(scores: Sequence[float]) -> int:
    """Index of the highest score, the first of equal ones.

    >>> likeliest([-2.0, -1.0, -1.0])
    1
    """
    return max(range(len(scores)), key=lambda index: (scores[index], -index))
