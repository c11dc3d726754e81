"""Results as frozen dataclasses, and their way to JSON and back.

The keys are a contract that scripts read (``schema`` counts its versions). Rates are shares of prompts that the
model *refused*; ``sparsity`` is the share of exact zeros counted in the weights themselves. This module knows
nothing about models or terminals; `to_json` and `from_json` are each other's inverse.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from aird_mlx.errors import AirdError

SCHEMA = 1

# What is run to get a result of each kind.
COMMANDS = {"Evaluation": "eval", "DirectionReport": "direction", "ComparisonReport": "compare"}

T = TypeVar("T")


@dataclass(frozen=True)
class Rate:
    """A share of ``n`` prompts with its Wilson 95 % interval; all three in [0, 1]."""

    rate: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class RefusalRates:
    """Refusals by kind of prompt; a kind without prompts is None. ``incoherent`` counts answers that are neither."""

    harmful: Rate | None
    harmless: Rate | None
    twin: Rate | None = None
    incoherent: Rate | None = None


@dataclass(frozen=True)
class Utility:
    """Perplexity over held-out text, and distance to the dense model on the same tokens.

    Attributes:
        perplexity: exp of the mean negative log-likelihood (nats) per token.
        kl_to_dense: mean over tokens of KL(dense || this), nats; 0 for the dense model.
        top1_agreement: share of tokens where both have the same most likely next token.
        tokens: how many tokens were counted.
    """

    perplexity: float
    kl_to_dense: float | None
    top1_agreement: float | None
    tokens: int


@dataclass(frozen=True)
class DirectionFigures:
    """A refusal direction as one stage shows it.

    Attributes:
        layer: input of this block.
        position: negative index into the post-instruction tokens, -1 = last prompt token.
        cosine_to_dense: cosine with the dense model's direction at the dense model's own (layer, position).
        norm: length of the difference of means.
        bypass, induce, kl: selection scores (Arditi et al.), None where only the cosine was measured.
        survived: whether a candidate passed the selection's filters.
        calibrated_cosine: the same across halves of the prompts, see `PlaceFigures`; None where it is undefined.
    """

    layer: int
    position: int
    cosine_to_dense: float | None
    norm: float
    bypass: float | None = None
    induce: float | None = None
    kl: float | None = None
    survived: bool | None = None
    calibrated_cosine: float | None = None


@dataclass(frozen=True)
class ParityFigures:
    """What llama.cpp did with an exported file, beside MLX; None where it was not checked."""

    token_ids_equal: bool
    argmax_agreement: float
    mean_kl: float
    tokens: int


@dataclass(frozen=True)
class Stage:
    """One row of the result: ``dense``, ``compressed``, ``repaired`` or ``exported:<type>``."""

    name: str
    refusal: RefusalRates
    utility: Utility | None
    sparsity: float
    bits_per_weight: float
    direction: DirectionFigures | None = None
    parity: ParityFigures | None = None
    not_checked: str | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RepairFigures:
    """How the repair was made; ``rank`` None = not low-rank, ``sparsity_lost`` counted in the weights."""

    rule: str
    layers: list[int]
    strength: float
    rank: int | None
    sparsity_lost: float
    ridge: float | None = None
    why: str = ""
    tried: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Gate:
    """A bar the result had to pass. ``kind`` is ``safety`` (exit code 3) or ``utility`` (exit code 4)."""

    name: str
    kind: str
    passed: bool
    value: float
    limit: float
    meaning: str = ""


@dataclass(frozen=True)
class Report:
    """Everything one run of ``repair`` measured and wrote."""

    model: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    direction: DirectionFigures
    stages: list[Stage]
    repair: RepairFigures
    gates: list[Gate]
    written: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    schema: int = SCHEMA

    def stage(self, name: str) -> Stage:
        """The stage called ``name``. Raises KeyError when the run had none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    @property
    def exit_code(self) -> int:
        """0 when every gate passed, 3 when a safety gate failed, else 4."""
        failed = {gate.kind for gate in self.gates if not gate.passed}
        if "safety" in failed:
            return 3
        return 4 if failed else 0


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
    schema: int = SCHEMA


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ScoredDirection:
    """A candidate direction; intervals and ``win_share`` are over resamples of the prompts it was scored on.

    Attributes:
        layer, position, norm: as in `DirectionFigures`.
        bypass, induce, kl: selection scores.
        survived: whether it passes the filters.
        win_share: share of resamples that select it.
        near_tie: whether its bypass cannot be told from the selected one's, which is a near tie of itself.
    """

    layer: int
    position: int
    norm: float
    bypass: Estimate
    induce: Estimate
    kl: Estimate
    survived: bool
    win_share: float
    near_tie: bool


@dataclass(frozen=True)
class DirectionReport:
    """What ``aird-mlx direction`` measured.

    Attributes:
        said: what the figures allow to say, in words.
        candidates: the best ones, best first, and every near tie; ``considered`` were scored, ``survivors`` passed.
        twins_along: where twins lie along the direction on average, from 0 (harmless prompts) to 1 (harmful ones).
        found, scored: harmful and harmless prompts that the means were taken over, and that candidates were scored on.
        resamples: how often the selection was repeated on resampled prompts.
    """

    model: str
    seed: int
    said: str
    selected: ScoredDirection
    candidates: list[ScoredDirection]
    considered: int
    survivors: int
    refusal_tokens: list[str]
    refusal_token_ids: list[int]
    twins_along: float | None
    found: list[int]
    scored: list[int]
    resamples: int
    written: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PlaceFigures:
    """The directions of two models compared, the dense one's read at (layer, position).

    Attributes:
        other_layer, other_position: where the other model's is read.
        cosine: plain, over all prompts; their noise is in it.
        calibrated_cosine: across halves of the prompts, by what the halves of one model give; noise may bring it above
            1. None where a model's own halves do not agree on a direction.
        angle: of the calibrated cosine, degrees; 0 for what lies above 1.
        null_dense, null_other: cosine of a model with itself across halves, mean over the splits.
        norm_dense, norm_other: lengths of the differences of means; ``norm_ratio`` other / dense, noise taken out.
    """

    layer: int
    position: int
    other_layer: int
    other_position: int
    cosine: float
    calibrated_cosine: Estimate | None
    angle: Estimate | None
    null_dense: float
    null_other: float
    norm_dense: float
    norm_other: float
    norm_ratio: Estimate | None


@dataclass(frozen=True)
class ComparisonReport:
    """What ``aird-mlx compare`` measured: has the direction moved?

    Attributes:
        verdict: what the figures allow to say, in words.
        fixed: both models at the place selected in the dense one; ``reselected``: each at its own selected place.
        dense_selected, other_selected: the direction selected in each model.
        other_fixed: the other model's candidate at the dense model's place.
        same_winner: share of resamples of the prompts in which both models select the same place.
        places: both models at every layer and position.
    """

    dense: str
    other: str
    seed: int
    verdict: str
    fixed: PlaceFigures
    reselected: PlaceFigures
    dense_selected: ScoredDirection
    other_fixed: ScoredDirection | None
    other_selected: ScoredDirection
    same_winner: float
    places: list[PlaceFigures]
    refusal_tokens: list[str]
    found: list[int]
    scored: list[int]
    splits: int
    resamples: int
    written: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def to_json(result: Any) -> str:
    """Any dataclass of this module as indented JSON text.

    >>> from_json(Rate, to_json(Rate(0.5, 0.4, 0.6, 10)))
    Rate(rate=0.5, low=0.4, high=0.6, n=10)
    """
    return json.dumps(dataclasses.asdict(result), indent=2, ensure_ascii=False) + "\n"


def from_json(kind: type[T], text: str, source: Path | None = None) -> T:
    """Read back what `to_json` wrote.

    Args:
        kind: the dataclass.
        text: JSON.
        source: where the text is from, for the message.

    Raises:
        AirdError: the text is not JSON, of another schema, lacks a required key, or has a value of another type.
    """
    try:
        return typing.cast(T, _build(kind, json.loads(text), kind.__name__))
    except (ValueError, TypeError, RecursionError) as error:  # JSONDecodeError is a ValueError
        where = "" if source is None else f"{source} is "
        command = COMMANDS.get(kind.__name__, "repair")
        raise AirdError(
            f"report: {where}not a {kind.__name__} ({error}); a result in JSON of schema {SCHEMA} is needed. "
            f"Run `aird-mlx {command}` again."
        ) from error


def _build(kind: Any, value: Any, name: str) -> Any:
    """``value`` as what ``kind`` says, at any depth; a TypeError names the place."""
    if kind is Any:
        return value
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        kind = next(member for member in typing.get_args(kind) if member is not types.NoneType)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, _checked(dict, value, name))
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return [_build(arguments[0], item, name) for item in _checked(list, value, name)]
    if origin is dict:
        return {key: _build(arguments[1], item, f"{name}.{key}") for key, item in _checked(dict, value, name).items()}
    return _checked(kind, value, name)


def _build_dataclass(kind: Any, value: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(kind)
    if "schema" in hints and value.get("schema", SCHEMA) != SCHEMA:
        raise ValueError(f"schema {value['schema']!r:.20}")
    return kind(**{name: _build(hints[name], item, name) for name, item in value.items() if name in hints})


def _checked(kind: type, value: Any, name: str) -> Any:
    # JSON writes whole floats as it finds them, and to Python a bool is an int.
    fits = type(value) in (int, float) if kind is float else type(value) is kind
    if not fits:
        raise TypeError(f"{name} is of type {type(value).__name__}, not {kind.__name__}")
    return value
