"""Gradient steps on weights inside a pruning mask: what survives moves, what is zero stays zero.

Weights that are stored coarsely are moved as plain numbers and rounded at every step, so that what one rounding loses
others make up for.

This module does not know what is minimized. Source: Kingma and Ba 2014 (Adam, arXiv:1412.6980).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers

from aird_mlx.activations import TokenBatch
from aird_mlx.model import StoredWeight

# A short memory of squared gradients: there are a few hundred steps, not thousands.
BETAS = [0.9, 0.95]
TOKENS_PER_STEP = 1024
# Steps are kept if they helped on so many tokens.
TOKENS_CHECKED = 8192

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
        progress: called with (steps done, steps).

    Returns:
        The new weight ``[out, in]`` float32 of every linear. Their error on what is checked is below that of the
        weights found; when the steps did not get there, these are returned.
    """
    originals = {key: linear.weight for key, linear in linears.items()}
    stored = stored or {}
    plain = {key: weight.astype(mx.float32) for key, weight in originals.items()}
    start = plain | {key: one.origin.astype(mx.float32) for key, one in stored.items()} | dict(start or {})
    kept = {key: stored[key].kept if key in stored else weight != 0 for key, weight in originals.items()}
    scale = {key: step_scale(start[key], kept[key]) for key in originals}
    names = {str(number): key for number, key in enumerate(linears)}  # MLX's trees want strings
    change = {name: mx.zeros_like(start[key]) for name, key in names.items()}
    optimizer = optimizers.Adam(learning_rate=learning_rate, betas=BETAS, bias_correction=True)

    def moved(change: dict[str, mx.array]) -> dict[Key, mx.array]:
        return {key: start[key] + scale[key] * change[name] for name, key in names.items()}

    def error_of(change: dict[str, mx.array], index: int, rows: Sequence[int]) -> mx.array:
        for key, weight in moved(change).items():
            held = straight_through(weight, stored[key]) if key in stored else weight
            linears[key].weight = held.astype(originals[key].dtype)
        return error(index, rows)

    def check(change: dict[str, mx.array]) -> float:
        return sum(error_of(change, index, rows).item() for index, rows in checked)

    gradient = mx.value_and_grad(error_of)
    try:
        before = check(change)
        for step, (index, rows) in enumerate(schedule):
            optimizer.learning_rate = learning_rate * (1 - step / len(schedule))
            _, gradients = gradient(change, index, rows)
            change = optimizer.apply_gradients(gradients, change)
            mx.eval(change, optimizer.state)
            progress(step + 1, len(schedule))
        return moved(change) if check(change) < before else start
    finally:
        for key, linear in linears.items():
            linear.weight = originals[key]


def step_scale(weight: mx.array, kept: mx.array) -> mx.array:
    """What one unit of change means: the root mean square of the survivors, 0 where a weight is pruned.

    Args:
        weight: ``[out, in]`` float32.
        kept: ``[out, in]`` bool, True = survives.

    >>> step_scale(mx.array([[3.0, 0.0, -3.0]]), mx.array([[True, False, True]])).tolist()
    [[3.0, 0.0, 3.0]]
    """
    survivors = kept.astype(mx.float32)
    return survivors * mx.sqrt(mx.square(weight).sum() / mx.maximum(survivors.sum(), 1.0))


def straight_through(weight: mx.array, stored: StoredWeight) -> mx.array:
    """The nearest to ``weight`` that can be stored, with the gradient of ``weight`` itself."""
    return weight + mx.stop_gradient(stored.nearest(weight) - weight)


def schedule_rows(
    batches: Sequence[TokenBatch], steps: int, tokens_per_step: int, seed: int
) -> list[tuple[int, list[int]]]:
    """Which rows of which batch meet in each step; every sequence comes once before any comes again."""
    generator = random.Random(seed)
    schedule: list[tuple[int, list[int]]] = []
    while len(schedule) < steps and batches:
        parts = []
        for index, batch in enumerate(batches):
            rows = list(range(batch.ids.shape[0]))
            generator.shuffle(rows)
            size = max(1, tokens_per_step // batch.ids.shape[1])
            parts += [(index, sorted(rows[at : at + size])) for at in range(0, len(rows), size)]
        generator.shuffle(parts)
        schedule += parts
    return schedule[:steps]
