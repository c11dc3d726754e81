"""What one run of ``eval`` measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from aird_mlx.report.figures import SCHEMA, Rate, Utility


@dataclass(frozen=True)
class AnswerRates:
    """What answers to one set of prompts were; the three shares add up to 1 and ``n`` counts prompts."""

    refusal: Rate
    compliance: Rate
    incoherent: Rate


@dataclass(frozen=True)
class JudgeFigures:
    """A judge model's opinion of the same answers.

    Attributes:
        compliance: share of prompts it says were complied with (any try), of those with a verdict that can be read.
        unparsable: how many of its verdicts could not be read.
        agreement: share of read verdicts that equal the rule judge's; ``n`` counts answers.
        kappa: Cohen's kappa of the same; None where both always say the same one word.
    """

    compliance: Rate | None
    unparsable: int
    agreement: Rate | None
    kappa: float | None


@dataclass(frozen=True)
class AskedSet:
    """One set of prompts under one attack.

    Attributes:
        prompts: name of the set: its file, hub id, or where the built-in one comes from.
        kind: ``harmful``, ``harmless`` or ``twin``.
        attack: ``vanilla``, ``system``, ``suffix``, ``sampling`` or ``prefill``.
        tries: answers per prompt (suffixes or samples).
        rates: by prompt; of several tries the worst counts (compliance if any complied, else refusal if any refused).
            ``rates.compliance`` of harmful prompts is the attack success rate.
        mean: over prompts, of each prompt's share of tries; None with one try.
        classes: by prompt (the first 16 hex digits of its sha256), the class of each try.
        judge_model: the judge model's figures, None without one.
        judge_model_classes: its verdicts as in ``classes``; ``unparsable`` where one could not be read.
    """

    prompts: str
    kind: str
    attack: str
    tries: int
    rates: AnswerRates
    mean: AnswerRates | None
    classes: dict[str, list[str]]
    judge_model: JudgeFigures | None = None
    judge_model_classes: dict[str, list[str]] | None = None


@dataclass(frozen=True)
class PairedChange:
    """Yes or no for the same prompts twice; ``gained`` went from no to yes, ``lost`` from yes to no.

    ``p_value`` is that of McNemar's exact test, two-sided.
    """

    n: int
    before: float
    after: float
    gained: int
    lost: int
    p_value: float


@dataclass(frozen=True)
class SetChange:
    """How one set under one attack changed since an earlier evaluation; ``outcome`` is the class counted."""

    prompts: str
    kind: str
    attack: str
    outcome: str
    change: PairedChange


@dataclass(frozen=True)
class MultipleChoiceFigures:
    """Share of questions whose right choice is the likeliest: by log-likelihood, and by log-likelihood per character.

    They are lm-eval's ``acc`` and ``acc_norm``; ``truncated`` counts choices whose context lost its beginning.
    """

    name: str
    accuracy: Rate
    accuracy_normalized: Rate
    truncated: int = 0


@dataclass(frozen=True)
class TaskScore:
    """One metric of one lm-eval task; ``error`` is its standard error."""

    task: str
    metric: str
    value: float
    error: float | None
    n: int | None


@dataclass(frozen=True)
class Evaluation:
    """Everything one run of ``eval`` measured.

    Attributes:
        format: ``mlx`` or ``gguf``.
        sets: refusals, by set of prompts and attack.
        answer_tokens: what answers were judged on, at most; None where nothing was asked.
        utility: over the text given; KL and agreement only against a dense model.
    """

    model: str
    format: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    sets: list[AskedSet]
    utility: Utility | None = None
    multiple_choice: list[MultipleChoiceFigures] = field(default_factory=list)
    tasks: list[TaskScore] = field(default_factory=list)
    changes: list[SetChange] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    answer_tokens: int | None = None
    schema: int = SCHEMA
