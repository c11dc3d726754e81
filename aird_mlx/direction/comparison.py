"""Did the direction move? Two models on the same prompts, by random halves of the prompts.

A plain cosine cannot tell: two estimates from n prompts differ though nothing moved, and two estimates from the same
prompts share their noise and look alike though the direction turned. So one model is read on one half of the prompts
and the other on the other half, and their cosine is divided by what the halves of one model give. Kernels take arrays;
`compare_directions` walks both models in step and keeps, per layer, sums over halves and never all states.
Source: Varshney 2026, arXiv:2609.30275.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from aird_mlx.activations import Walk, batch_sequences, take_positions
from aird_mlx.direction.bootstrap import Floats
from aird_mlx.errors import DirectionError
from aird_mlx.model import ChatModel
from aird_mlx.report import Estimate

# A model whose own halves agree less than this in any split has no direction there that could be compared.
LEAST_NULL = 0.1
LEAST_PROMPTS = 8

Place = tuple[int, int]
Halves = tuple[mx.array, mx.array]


@dataclass(frozen=True)
class SplitScores:
    """What each random split of the prompts says about a place in two models; every array is ``[split]``.

    Attributes:
        null_one, null_other: cosine of the two halves' directions within one model.
        cross: cosine of one model's direction on the first half with the other's on the second half.
        inner_one, inner_other: inner product of the two halves' differences of means within one model; its mean is the
            squared length of the difference without noise.
        gap_one, gap_other: squared length of the first half's difference minus that of the second half's.
    """

    null_one: Floats
    null_other: Floats
    cross: Floats
    inner_one: Floats
    inner_other: Floats
    gap_one: Floats
    gap_other: Floats

    @property
    def is_defined(self) -> bool:
        """Whether both models have a direction here at all: every null is above 0.1."""
        return min(self.null_one.min(), self.null_other.min()) > LEAST_NULL

    def calibrated_cosine(self) -> Estimate | None:
        """``cross / sqrt(null_one * null_other)``, 1 where nothing moved; None where a null is near or below 0.

        Nothing is clipped: noise can bring it above 1. The value is taken from the means over the splits. Half a
        sample drawn without replacement varies as much as the whole sample does from sample to sample, so the splits
        give the interval; it is too wide rather than too narrow where the models share their noise.
        """
        if not self.is_defined:
            return None
        value = self.cross.mean() / np.sqrt(self.null_one.mean() * self.null_other.mean())
        return _estimate(value, self.cross / np.sqrt(self.null_one * self.null_other))

    def norm_ratio(self) -> Estimate | None:
        """Length of the other model's difference of means as a multiple of this one's, noise taken out of both.

        With halves m + e and m - e the gap is 4 m . e, so gap / (4 inner) is the share by which a sample's noise
        lengthens the difference.
        """
        if not self.is_defined:
            return None
        one, other = self.inner_one.mean(), self.inner_other.mean()
        value = np.sqrt(other / one)
        return _estimate(value, value * np.exp(self.gap_other / (4 * other) - self.gap_one / (4 * one)))


def _estimate(value: float, splits: Floats) -> Estimate:
    """``value`` with the 2.5 % and 97.5 % quantiles over the splits."""
    low, high = np.quantile(splits, [0.025, 0.975])
    return Estimate(float(value), float(low), float(high))


def random_halves(count: int, splits: int, seed: int) -> np.ndarray:
    """``[split, count]`` bool, each row a random half: ``count // 2`` True.

    Raises:
        DirectionError: fewer than 8 prompts, whose halves say nothing.

    >>> random_halves(9, 3, seed=0).sum(axis=1).tolist()
    [4, 4, 4]
    """
    if count < LEAST_PROMPTS:
        raise DirectionError(
            f"compare: {count} prompts of one kind to take means over, 40 % of all; at least {LEAST_PROMPTS} are "
            "needed to split them in halves. Give 20 or more of each kind."
        )
    ranks = np.random.default_rng(seed).random((splits, count)).argsort(axis=1).argsort(axis=1)
    return ranks < count // 2


def half_means(states: Sequence[tuple[mx.array, Sequence[int]]], halves: np.ndarray) -> Halves:
    """Means of the states over each first half and over the rest, by one matrix product per batch.

    Args:
        states: batches ``[row, position, hidden]``, each with the prompt that every row is.
        halves: ``[split, prompt]`` bool, True = first half.

    Returns:
        Two arrays ``[split, position, hidden]`` float32.
    """
    first, total = mx.array(0.0), mx.array(0.0)
    for batch, order in states:
        flat = batch.astype(mx.float32).reshape(batch.shape[0], -1)
        first = first + mx.array(halves[:, list(order)].astype(np.float32)) @ flat
        total = total + flat.sum(axis=0)
    shape = (len(halves), *states[0][0].shape[1:])
    inside = int(halves[0].sum())
    rest = (total - first) / (halves.shape[1] - inside)
    return (first / inside).reshape(shape), rest.reshape(shape)


def score_splits(one: Halves, other: Halves) -> list[SplitScores]:
    """Compare two models' half differences, each a pair ``[split, position, hidden]``; one result per position."""
    scores = {"cross": _cosine(one[0], other[1])}
    for which, (first, second) in (("one", one), ("other", other)):
        scores[f"null_{which}"] = _cosine(first, second)
        scores[f"inner_{which}"] = (first * second).sum(axis=-1)
        scores[f"gap_{which}"] = first.square().sum(axis=-1) - second.square().sum(axis=-1)
    columns = {name: np.array(values, dtype=np.float64).T for name, values in scores.items()}
    return [
        SplitScores(**{name: column[position] for name, column in columns.items()})
        for position in range(one[0].shape[1])
    ]


def _length(vectors: mx.array) -> mx.array:
    return mx.linalg.norm(vectors, axis=-1)


def _cosine(one: mx.array, other: mx.array) -> mx.array:
    return (one * other).sum(axis=-1) / mx.maximum(_length(one) * _length(other), 1e-12)


@dataclass(frozen=True)
class PlaceComparison:
    """Two models' directions, each at one place.

    Attributes:
        cosine: of the directions over all prompts.
        norms: lengths of both differences of means over all prompts.
        splits: what random halves of the prompts say.
    """

    cosine: float
    norms: tuple[float, float]
    splits: SplitScores


@dataclass(frozen=True)
class Comparison:
    """Two models compared at every layer and position, and at one place of each.

    Attributes:
        places: by ``(layer, position)``, both models read at the same place.
        across: ``one`` read at its given place, ``other`` at its own.
    """

    places: dict[Place, PlaceComparison]
    across: PlaceComparison


def compare_directions(
    one: ChatModel,
    other: ChatModel,
    harmful: Sequence[Sequence[int]],
    harmless: Sequence[Sequence[int]],
    *,
    positions: int,
    across: tuple[Place, Place],
    splits: int = 200,
    seed: int = 0,
    layers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Comparison:
    """Compare the difference directions of two models of one shape, everywhere, in one walk through both.

    Args:
        one, other: read only.
        harmful, harmless: token ids of rendered prompts, the same for both models.
        positions: how many last tokens to look at.
        across: a place ``(layer, position)`` of each model to compare with each other.
        splits: how many random splits of the prompts.
        layers: compare the first so many, and run no block that only later ones need; None for all.
        progress: called with (layers compared, layers).

    Raises:
        DirectionError: fewer than 8 prompts of one kind.
        ModelError: a block gives values that are not finite.
    """
    kinds = [
        (prompts, random_halves(len(prompts), splits, seed + number))
        for number, prompts in enumerate((harmful, harmless))
    ]
    walks = [[Walk(model, batch_sequences(prompts)) for prompts, _ in kinds] for model in (one, other)]
    places: dict[Place, PlaceComparison] = {}
    kept: dict[int, _Differences] = {}
    layers = len(one.blocks) if layers is None else layers
    for layer in range(layers):
        read = [_differences(pair, [halves for _, halves in kinds], positions) for pair in walks]
        for position, compared in enumerate(_compare(*read), start=-positions):
            places[layer, position] = compared
        for which, (wanted_layer, position) in enumerate(across):
            if wanted_layer == layer:
                kept[which] = read[which].at(position)
        if layer + 1 < layers:
            for walk in (walk for pair in walks for walk in pair):
                walk.move_to(layer + 1)
        progress(layer + 1, layers)
    assert kept.keys() == {0, 1}, f"no place {across} in {layers} layers"
    return Comparison(places, _compare(kept[0], kept[1])[0])


@dataclass(frozen=True)
class _Differences:
    """Harmful minus harmless at one layer of a model.

    Attributes:
        halves: ``[split, position, hidden]``, on the first halves of the prompts and on the second ones.
        whole: ``[position, hidden]``, on all prompts.
    """

    halves: Halves
    whole: mx.array

    def at(self, position: int) -> _Differences:
        """The same with one position."""
        first, second = (half[:, position][:, None] for half in self.halves)
        return _Differences((first, second), self.whole[position][None])


def _differences(walks: Sequence[Walk], halves: Sequence[np.ndarray], positions: int) -> _Differences:
    """Of the layer that the walks, over harmful and over harmless prompts, stand at."""
    means: list[tuple[mx.array, mx.array, mx.array]] = []
    for walk, split in zip(walks, halves, strict=True):
        states = [
            (take_positions(hidden, batch.lengths, range(-positions, 0)), batch.order)
            for hidden, batch in zip(walk.hidden, walk.batches, strict=True)
        ]
        whole = sum((batch.astype(mx.float32).sum(axis=0) for batch, _ in states), start=mx.array(0.0)) / split.shape[1]
        means.append((*half_means(states, split), whole))
    first, second, whole = (harmful - harmless for harmful, harmless in zip(*means, strict=True))
    mx.eval(first, second, whole)
    return _Differences((first, second), whole)


def _compare(one: _Differences, other: _Differences) -> list[PlaceComparison]:
    cosines = _cosine(one.whole, other.whole).tolist()
    norms = zip(_length(one.whole).tolist(), _length(other.whole).tolist(), strict=True)
    return [
        PlaceComparison(cosine, pair, scores)
        for cosine, pair, scores in zip(cosines, norms, score_splits(one.halves, other.halves), strict=True)
    ]
