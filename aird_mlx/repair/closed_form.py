"""Repairs of one linear that have a closed form: what is written along the direction, and the refit of a mask.

Kernels take arrays and give arrays. r is the dense model's unit refusal direction; W_o, W_c a linear's original and
compressed weight; x, x' its inputs in the dense and in the compressed model, on the same tokens.

Source: AIRD (arXiv:2504.04215) for the edit along r; the least squares and their confinement to a mask are ours.
"""

from __future__ import annotations

import mlx.core as mx

from aird_mlx.errors import ShapeError

REFIT_ITERATIONS = 200
REFIT_TOLERANCE = 1e-5


def spread_inside_mask(direction: mx.array, change_along: mx.array, kept: mx.array) -> mx.array:
    """The smallest edit confined to surviving weights with the same effect along the direction.

    Args:
        direction: r, ``[out]`` float32, unit length.
        change_along: delta, ``[in]`` float32: the wanted change of ``r^T W``.
        kept: m, ``[out, in]`` bool, True = the weight survives.

    Returns:
        ``[out, in]`` float32: ``m_ij r_i delta_j / sum_k m_kj r_k^2``; a column whose survivors carry less than a
        millionth of r is left alone.

    Raises:
        ShapeError: the shapes do not belong together.

    >>> spread_inside_mask(mx.array([0.6, 0.8]), mx.array([1.0]), mx.array([[True], [False]])).tolist()
    [[1.6666666269302368], [0.0]]
    """
    if kept.shape != (direction.shape[0], change_along.shape[0]):
        raise ShapeError(
            f"repair: kept has shape {kept.shape}; direction {direction.shape} and change {change_along.shape} need "
            f"({direction.shape[0]}, {change_along.shape[0]}). Use the mask of the same linear."
        )
    survivors = kept.astype(mx.float32) * direction[:, None]
    carried = (survivors * direction[:, None]).sum(axis=0)
    scale = mx.where(carried > 1e-6, change_along / mx.maximum(carried, 1e-6), 0.0)
    return survivors * scale


def restore_change(direction: mx.array, original: mx.array, compressed: mx.array) -> mx.array:
    """``r^T (W_o - W_c)``, ``[in]``: what is missing along the direction."""
    return direction @ (original.astype(mx.float32) - compressed.astype(mx.float32))


def least_squares_change(
    direction: mx.array,
    original: mx.array,
    compressed: mx.array,
    second_moment: mx.array,
    cross_moment: mx.array,
    ridge: float,
) -> mx.array:
    """The change of ``r^T W`` that brings the output along r back on the inputs the compressed model really gets.

    Solves ``(H + lambda I) delta = G^T W_o^T r - H W_c^T r`` with ``lambda = ridge * mean(diag H)``.

    Args:
        direction: r, ``[out]`` float32.
        original, compressed: W_o, W_c, ``[out, in]``.
        second_moment: H = mean of x' x'^T, ``[in, in]`` float32.
        cross_moment: G = mean of x x'^T, ``[in, in]`` float32.
        ridge: relative regularization, > 0.

    Returns:
        delta, ``[in]`` float32.
    """
    wanted = (direction @ original.astype(mx.float32)) @ cross_moment
    right = wanted - second_moment @ (direction @ compressed.astype(mx.float32))
    width = second_moment.shape[0]
    damped = second_moment + ridge * mx.diag(second_moment).mean() * mx.eye(width)
    return mx.linalg.solve(damped, right[:, None], stream=mx.cpu)[:, 0]


def refit_weight(
    original: mx.array,
    compressed: mx.array,
    second_moment: mx.array,
    cross_moment: mx.array,
    ridge: float,
    *,
    direction: mx.array | None = None,
    beta: float = 0.0,
    iterations: int = REFIT_ITERATIONS,
    tolerance: float = REFIT_TOLERANCE,
) -> mx.array:
    """Choose the surviving weights again: least squares inside the mask towards the dense model's outputs.

    Minimizes ``sum |W' x' - W_o x|^2 + beta (r^T (W' x' - W_o x))^2 + lambda |W' - W_c|^2`` over the W' that are zero
    where W_c is, with ``lambda = ridge * mean(diag H)``, by conjugate gradients on all rows at once, preconditioned
    with the diagonal. Everything is matrix products of the weight's shape, so it works at any width; without beta
    the rows are independent and each has its own step.

    Args:
        original, compressed: W_o, W_c, ``[out, in]``.
        second_moment: H = mean of x' x'^T, ``[in, in]`` float32.
        cross_moment: G = mean of x x'^T, ``[in, in]`` float32.
        ridge: relative regularization, > 0.
        direction: r, ``[out]`` float32 unit; needed with beta.
        beta: extra weight of the error along r.
        iterations: at most this many steps.
        tolerance: stop when every row's residual has shrunk by this factor.

    Returns:
        W', ``[out, in]`` float32, exactly 0 where ``compressed`` is.

    Raises:
        ShapeError: the moments are not ``[in, in]``.
    """
    width = compressed.shape[1]
    if second_moment.shape != (width, width) or cross_moment.shape != (width, width):
        raise ShapeError(
            f"refit: the moments have shapes {second_moment.shape} and {cross_moment.shape}; weight {compressed.shape} "
            f"needs ({width}, {width}). Collect them from this linear's inputs."
        )
    scale = mx.maximum(mx.diag(second_moment).mean(), 1e-30)
    moment = second_moment / scale
    start = compressed.astype(mx.float32)
    kept = (compressed != 0).astype(mx.float32)
    along = None if direction is None or beta == 0 else direction[:, None]

    def weigh(rows: mx.array) -> mx.array:
        return rows if along is None else rows + beta * along * (along * rows).sum(axis=0, keepdims=True)

    def apply(rows: mx.array) -> mx.array:
        return kept * (weigh(rows @ moment) + ridge * rows)

    row_weight = 1.0 if along is None else 1.0 + beta * mx.square(along)
    diagonal = row_weight * mx.diag(moment)[None] + ridge
    axes = -1 if along is None else None

    def dot(one: mx.array, other: mx.array) -> mx.array:
        return (one * other).sum(axis=axes, keepdims=True)

    target = original.astype(mx.float32) @ (cross_moment / scale)
    residual = kept * weigh(target - start @ moment)
    change = mx.zeros_like(start)
    preconditioned = residual / diagonal
    step_direction = preconditioned
    size = dot(residual, preconditioned)
    goal = size * tolerance**2
    for _ in range(iterations):
        image = apply(step_direction)
        step = size / mx.maximum(dot(step_direction, image), 1e-30)
        change = change + step * step_direction
        residual = residual - step * image
        preconditioned = residual / diagonal
        new_size = dot(residual, preconditioned)
        step_direction = preconditioned + (new_size / mx.maximum(size, 1e-30)) * step_direction
        size = new_size
        mx.eval(change, residual, step_direction, size)
        if (size <= goal).all().item():
            break
    return kept * (start + change)
