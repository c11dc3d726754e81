"""Which weights a pruning method removes: arrays in, masks out.

True = remove. Ties are broken by index (the lower index goes first), so the same input gives the same mask on
every run. Patterns: ``unstructured`` removes the same number per row; ``N:M`` removes N of each M consecutive inputs.
"""

from __future__ import annotations

import mlx.core as mx

from aird_mlx.errors import ShapeError, UsageError


def parse_pattern(pattern: str) -> tuple[int, int] | None:
    """``"2:4"`` -> (2, 4); ``"unstructured"`` -> None.

    Raises:
        UsageError: anything else, or N not below M.

    >>> parse_pattern("2:4")
    (2, 4)
    """
    if pattern == "unstructured":
        return None
    first, colon, second = pattern.partition(":")
    if colon and first.isascii() and first.isdigit() and second.isascii() and second.isdigit():
        removed, group = int(first), int(second)
        if 0 < removed < group:
            return removed, group
    raise UsageError(
        f"prune: pattern is {pattern!r}; `unstructured` or N:M with 0 < N < M is needed. Use for example 2:4 or 4:8."
    )


def magnitude_scores(weight: mx.array) -> mx.array:
    """``|weight|``, float32, ``[out, in]``."""
    return mx.abs(weight.astype(mx.float32))


def wanda_scores(weight: mx.array, input_norm: mx.array) -> mx.array:
    """``|weight| * input_norm``: how much each weight contributes over the calibration tokens.

    Args:
        weight: ``[out, in]``, floating.
        input_norm: ``[in]`` float32, L2 norm of each input feature over the calibration tokens.

    Raises:
        ShapeError: ``input_norm`` is not ``[in]``.

    Source:
        Sun et al. 2023, arXiv:2306.11695, eq. 1.
    """
    if input_norm.shape != (weight.shape[1],):
        raise ShapeError(
            f"wanda: input_norm has shape {input_norm.shape}; weight {weight.shape} needs ({weight.shape[1]},). "
            "Collect the norms from this layer's inputs, not its outputs."
        )
    return mx.abs(weight.astype(mx.float32)) * input_norm


def lowest_mask(scores: mx.array, sparsity: float) -> mx.array:
    """Mark the ``floor(in * sparsity)`` lowest scores of each row, lower index first among equals.

    Args:
        scores: ``[out, in]`` float32, not negative.
        sparsity: fraction of each row to remove, ``0 <= sparsity < 1``.

    Returns:
        ``[out, in]`` bool, True = remove.

    Raises:
        UsageError: sparsity outside [0, 1).

    >>> lowest_mask(mx.array([[1.0, 2.0, 3.0, 1.0]]), 0.5).tolist()
    [[True, False, False, True]]
    """
    if not 0 <= sparsity < 1:
        raise UsageError(
            f"prune: sparsity is {sparsity}; a fraction with 0 <= sparsity < 1 is needed. Use for example 0.5."
        )
    removed = int(scores.shape[1] * sparsity + 1e-9)
    return _rank(scores) < removed


def n_of_m_mask(scores: mx.array, removed: int, group: int) -> mx.array:
    """Mark the ``removed`` lowest of each ``group`` consecutive scores of a row, lower index first among equals.

    Raises:
        UsageError: ``group`` does not divide the number of inputs.

    >>> n_of_m_mask(mx.array([[4.0, 1.0, 3.0, 2.0]]), 2, 4).tolist()
    [[False, True, False, True]]
    """
    rows, width = scores.shape
    if width % group:
        raise UsageError(
            f"prune: pattern {removed}:{group} does not divide the {width} inputs of a linear; a width divisible by "
            f"{group} is needed. Use another pattern, or unstructured."
        )
    grouped = scores.reshape(rows, width // group, group)
    return (_rank(grouped) < removed).reshape(rows, width)


def _rank(scores: mx.array) -> mx.array:
    """Rank of each score along the last axis, 0 = lowest; equal scores are ranked by index.

    A merge sort on the pair (score, index) would do; MLX's argsort does not promise stability, so positions among
    equals are settled by a second sort on integers: the rank of the score's value, then its index.
    """
    order = mx.argsort(scores, axis=-1)
    ordered = mx.take_along_axis(scores, order, axis=-1)
    is_new = mx.concatenate([mx.zeros_like(ordered[..., :1]), ordered[..., 1:] != ordered[..., :-1]], axis=-1)
    level_in_order = mx.cumsum(is_new.astype(mx.int32), axis=-1)
    inverse = mx.argsort(order, axis=-1)
    level = mx.take_along_axis(level_in_order, inverse, axis=-1)
    width = scores.shape[-1]
    key = level.astype(mx.int64) * width + mx.arange(width)
    return mx.argsort(mx.argsort(key, axis=-1), axis=-1)
