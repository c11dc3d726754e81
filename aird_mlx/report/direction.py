"""What ``direction`` and ``compare`` measured."""

from __future__ import annotations

from dataclasses import dataclass, field

from aird_mlx.report.figures import Estimate


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
