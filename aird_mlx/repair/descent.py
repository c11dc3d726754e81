"""Gradient steps on weights inside a pruning mask: what survives moves, what is zero stays zero.

Weights that are stored coarsely are moved as plain numbers and rounded at every step, so that what one rounding loses
others make up for.

This module does not know what is minimized. Source: Kingma and Ba 2014 (Adam, arXiv:1412.6980).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers

from aird_mlx.activations import TokenBatch
from aird_mlx.model import StoredWeight

# A short memory of squared gradients: there are a few hundred steps, not thousands.
BETAS = [0.9, 0.95]
# Adam's, relative to a linear's root mean square as its steps are; and the least of these that counts.
EPSILON, SMALLEST = 1e-8, 1e-20
# Steps are kept if they helped on so many tokens.
TOKENS_CHECKED = 2048

Key = TypeVar("Key")
Error = Callable[[int, Sequence[int]], mx.array]


def descend(
    linears: Mapping[Key, nn.Linear],
    error: Error,
    schedule: Sequence[tuple[int, list[int]]],
    *,
    learning_rate: float,
    checked: Sequence[tuple[int, list[int]]],
    stored: Mapping[Key, StoredWeight] | None = None,
    start: Mapping[Key, mx.array] | None = None,
    put_back: Callable[[], None] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[Key, mx.array]:
    """Move the surviving weights of ``linears`` so that ``error`` falls: Adam, with a rate that falls to 0.

    Args:
        linears: whose weights are moved; they are left as found.
        error: from (batch, rows of it) to a scalar, computed with the weights the linears then have.
        schedule: the (batch, rows) of each step.
        learning_rate: first step size, relative to each linear's root mean square.
        checked: the (batch, rows) that the error is summed over before and after.
        stored: of linears that are not stored as plain numbers. Their error is computed with what can be stored, and
            its gradient is taken for that of the weight that is rounded (straight through, arXiv:1308.3432).
        start: ``[out, in]`` float32, weights to begin with; by default those found, or what was rounded to them.
        put_back: gives the linears their weights again; by default those of now, which are kept in memory for it.
        progress: called with (steps done, steps).

    Returns:
        The new weight ``[out, in]`` float32 of every linear. Their error on what is checked is below that of the
        weights found; when the steps did not get there, these are returned.
    """
    stored, given = stored or {}, start or {}
    if put_back is None:
        put_back = partial(_give, linears, {key: linear.weight for key, linear in linears.items()})
    dtypes = {key: linear.weight.dtype for key, linear in linears.items()}

    def begun(key: Key) -> mx.array:
        found = stored[key].origin if key in stored else linears[key].weight
        return given.get(key, found).astype(mx.float32)

    def error_of(weights: Sequence[mx.array], index: int, rows: Sequence[int]) -> mx.array:
        for key, weight in zip(linears, weights, strict=True):
            held = straight_through(weight, stored[key]) if key in stored else weight
            linears[key].weight = held.astype(dtypes[key])
        return error(index, rows)

    def check() -> float:
        return sum(error_of(weights, index, rows).item() for index, rows in checked)

    is_better = False
    try:
        kept = [stored[key].kept if key in stored else linear.weight != 0 for key, linear in linears.items()]
        weights = [begun(key) for key in linears]
        sizes = [root_mean_square(*one).item() for one in zip(weights, kept, strict=True)]
        adams = [optimizers.Adam(1.0, BETAS, EPSILON / max(size, SMALLEST), bias_correction=True) for size in sizes]
        gradient = mx.grad(error_of)
        before = check()
        for step, (index, rows) in enumerate(schedule):
            gradients = gradient(weights, index, rows)
            for at, (linear, adam) in enumerate(zip(linears.values(), adams, strict=True)):
                adam.learning_rate = learning_rate * sizes[at] * (1 - step / len(schedule))
                own, gradients[at] = {"weight": mx.where(kept[at], gradients[at], 0.0)}, None
                weights[at] = adam.apply_gradients(own, {"weight": weights[at]})["weight"]
                del own
                linear.weight = weights[at]  # and lets go of what the error was computed with
                mx.eval(weights[at], adam.state)  # one gradient, and what its step takes, at a time
            progress(step + 1, len(schedule))
        is_better = check() < before
    finally:
        put_back()
    return {key: weight if is_better else begun(key) for key, weight in zip(linears, weights, strict=True)}


def _give(linears: Mapping[Key, nn.Linear], weights: Mapping[Key, mx.array]) -> None:
    for key, linear in linears.items():
        linear.weight = weights[key]


def root_mean_square(weight: mx.array, kept: mx.array) -> mx.array:
    """Root mean square of what survives, a float32 scalar: steps are relative to it.

    Args:
        weight: ``[out, in]`` float32.
        kept: ``[out, in]`` bool, True = survives.

    >>> root_mean_square(mx.array([[3.0, 0.0, -3.0]]), mx.array([[True, False, True]])).item()
    3.0
    """
    return mx.sqrt(mx.square(weight).sum() / mx.maximum(kept.astype(mx.float32).sum(), 1.0))


def straight_through(weight: mx.array, stored: StoredWeight) -> mx.array:
    """The nearest to ``weight`` that can be stored, with the gradient of ``weight`` itself."""
    return weight + mx.stop_gradient(stored.nearest(weight) - weight)


def schedule_rows(
    batches: Sequence[TokenBatch], steps: int, tokens_per_step: int, seed: int
) -> list[tuple[int, list[int]]]:
    """Which rows of which batch meet in each step; every sequence comes once before any comes again.

    Each step takes from everywhere in the order that the sequences of a batch were given in (stratified sampling):
    where prompts of a kind stand together, it has as large a share of each kind as its batch has.

    >>> from aird_mlx.activations import batch_sequences
    >>> schedule = schedule_rows(batch_sequences([[1, 2]] * 6), steps=2, tokens_per_step=6, seed=0)
    >>> [[row // 2 for row in rows] for _, rows in schedule]
    [[0, 1, 2], [0, 1, 2]]
    """
    generator = random.Random(seed)
    schedule: list[tuple[int, list[int]]] = []
    while len(schedule) < steps and batches:
        parts = []
        for index, batch in enumerate(batches):
            rows = sorted(range(len(batch.order)), key=batch.order.__getitem__)
            size = max(1, tokens_per_step // batch.ids.shape[1])
            count = -(-len(rows) // size)
            dealt: list[list[int]] = [[] for _ in range(count)]
            for start in range(0, len(rows), count):
                neighbours = rows[start : start + count]
                for row, part in zip(neighbours, generator.sample(range(count), len(neighbours)), strict=True):
                    dealt[part].append(row)
            parts += [(index, sorted(part)) for part in dealt if part]
        generator.shuffle(parts)
        schedule += parts
    return schedule[:steps]
