"""Repairs of one linear that have a closed form: what is written along the directions, and the refit of a mask.

Kernels take arrays and give arrays. R holds the dense model's refusal direction, or several orthonormal ones, as rows
``[k, out]``; W_o, W_c are a linear's original and compressed weight; x, x' its inputs in the dense and in the
compressed model, on the same tokens.

Source: AIRD (arXiv:2504.04215) for the edit along r; the least squares and their confinement to a mask are ours.
"""

from __future__ import annotations

import mlx.core as mx

from aird_mlx.errors import ShapeError

# Conjugate gradients stop after so many steps, or when every row's residual has shrunk by this factor.
REFIT_ITERATIONS, REFIT_TOLERANCE = 200, 1e-5
# A column whose survivors carry less of a direction than this is left alone: its weights would have to be huge.
LEAST_CARRIED = 1e-6


def spread_inside_mask(directions: mx.array, change_along: mx.array, kept: mx.array) -> mx.array:
    """The smallest edit confined to surviving weights with the same effect along the directions.

    Args:
        directions: R, ``[k, out]`` float32, orthonormal rows.
        change_along: D, ``[k, in]`` float32: the wanted change of ``R W``.
        kept: m, ``[out, in]`` bool, True = the weight survives.

    Returns:
        ``[out, in]`` float32. Column j is ``m_j R^T (R diag(m_j) R^T)^-1 D_j``, for one direction r
        ``m_ij r_i D_j / sum_k m_kj r_k^2``; what survivors carry less than a millionth of is left alone.

    Raises:
        ShapeError: the shapes do not belong together.

    >>> spread_inside_mask(mx.array([[0.6, 0.8]]), mx.array([[1.0]]), mx.array([[True], [False]])).tolist()
    [[1.6666666269302368], [0.0]]
    """
    count, rows = directions.shape
    if kept.shape != (rows, change_along.shape[1]) or change_along.shape[0] != count:
        raise ShapeError(
            f"repair: kept has shape {kept.shape}; directions {directions.shape} and change {change_along.shape} need "
            f"({rows}, {change_along.shape[1]}). Use the mask of the same linear."
        )
    survivors = kept.astype(mx.float32)
    pairs = (directions[:, None] * directions[None]).reshape(count * count, rows)
    carried = (pairs @ survivors).T.reshape(-1, count, count)
    values, vectors = mx.linalg.eigh(carried, stream=mx.cpu)
    inverse = mx.where(values > LEAST_CARRIED, 1.0 / mx.maximum(values, LEAST_CARRIED), 0.0)
    inside = (vectors * inverse[:, None]) @ (vectors.transpose(0, 2, 1) @ change_along.T[:, :, None])
    return survivors * (directions.T @ inside[:, :, 0].T)


def restore_change(directions: mx.array, original: mx.array, compressed: mx.array) -> mx.array:
    """``R (W_o - W_c)``, ``[k, in]``: what is missing along the directions."""
    return directions @ (original.astype(mx.float32) - compressed.astype(mx.float32))


def least_squares_change(
    directions: mx.array,
    original: mx.array,
    compressed: mx.array,
    second_moment: mx.array,
    cross_moment: mx.array,
    ridge: float,
) -> mx.array:
    """The change of ``R W`` that brings the output along R back on the inputs the compressed model really gets.

    Solves ``D (H + lambda I) = R W_o G - R W_c H`` with ``lambda = ridge * mean(diag H)``.

    Args:
        directions: R, ``[k, out]`` float32.
        original, compressed: W_o, W_c, ``[out, in]``.
        second_moment: H = mean of x' x'^T, ``[in, in]`` float32.
        cross_moment: G = mean of x x'^T, ``[in, in]`` float32.
        ridge: relative regularization, > 0.

    Returns:
        D, ``[k, in]`` float32.
    """
    missing = _missing_along(directions, original, compressed, second_moment, cross_moment)
    width = second_moment.shape[0]
    damped = second_moment + ridge * mx.diag(second_moment).mean() * mx.eye(width)
    return mx.linalg.solve(damped, missing.T, stream=mx.cpu).T


def least_squares_inside_mask(
    directions: mx.array,
    original: mx.array,
    compressed: mx.array,
    second_moment: mx.array,
    cross_moment: mx.array,
    ridge: float,
    beta: float,
    *,
    kept: mx.array | None = None,
) -> mx.array:
    """The same inside the mask, at the least cost to what is written orthogonally to R.

    `spread_inside_mask` makes the smallest edit; where few weights survive it still writes much across R. Here all
    surviving weights are solved for together, so that along R the output meets the dense model's and across R it
    stays: minimizes ``sum |e|^2 + beta |R e|^2 + lambda |W' - W_c|^2``
    with ``e = W' x' - W_c x' - R^T R (W_o x - W_c x')``.

    Args:
        beta: how many times more the error along R weighs than the change across it.
        directions, original, compressed, second_moment, cross_moment, ridge: see `least_squares_change`.
        kept: see `masked_least_squares`.

    Returns:
        W', ``[out, in]`` float32, exactly 0 where pruned.
    """
    missing = _missing_along(directions, original, compressed, second_moment, cross_moment)
    target = compressed.astype(mx.float32) @ second_moment + directions.T @ missing
    return masked_least_squares(compressed, target, second_moment, ridge, directions=directions, beta=beta, kept=kept)


def _missing_along(
    directions: mx.array, original: mx.array, compressed: mx.array, second_moment: mx.array, cross_moment: mx.array
) -> mx.array:
    """``E[R (W_o x - W_c x') x'^T]``, ``[k, in]``."""
    wanted = (directions @ original.astype(mx.float32)) @ cross_moment
    return wanted - (directions @ compressed.astype(mx.float32)) @ second_moment


def refit_weight(
    original: mx.array,
    compressed: mx.array,
    second_moment: mx.array,
    cross_moment: mx.array,
    ridge: float,
    *,
    directions: mx.array | None = None,
    beta: float = 0.0,
    kept: mx.array | None = None,
) -> mx.array:
    """Choose the surviving weights again: least squares inside the mask towards the dense model's outputs.

    Minimizes ``sum |W' x' - W_o x|^2 + beta |R (W' x' - W_o x)|^2 + lambda |W' - W_c|^2`` over the W' that are zero
    where W_c is, see `masked_least_squares`.

    Args:
        original, compressed: W_o, W_c, ``[out, in]``.
        second_moment: H = mean of x' x'^T, ``[in, in]`` float32.
        cross_moment: G = mean of x x'^T, ``[in, in]`` float32.
        ridge, directions, beta, kept: see `masked_least_squares`.

    Raises:
        ShapeError: the moments are not ``[in, in]``.
    """
    width = compressed.shape[1]
    if second_moment.shape != (width, width) or cross_moment.shape != (width, width):
        raise ShapeError(
            f"refit: the moments have shapes {second_moment.shape} and {cross_moment.shape}; weight {compressed.shape} "
            f"needs ({width}, {width}). Collect them from this linear's inputs."
        )
    target = original.astype(mx.float32) @ cross_moment
    return masked_least_squares(compressed, target, second_moment, ridge, directions=directions, beta=beta, kept=kept)


def masked_least_squares(
    compressed: mx.array,
    target: mx.array,
    second_moment: mx.array,
    ridge: float,
    *,
    directions: mx.array | None = None,
    beta: float = 0.0,
    kept: mx.array | None = None,
) -> mx.array:
    """Least squares over the surviving weights of one linear, towards wanted outputs y on its inputs x'.

    Minimizes ``E|W' x' - y|^2 + beta E|R (W' x' - y)|^2 + lambda |W' - W_c|^2`` over the W' that are zero where W_c is,
    with ``lambda = ridge * mean(diag H)``, by conjugate gradients on all rows at once, preconditioned with the
    diagonal. Everything is matrix products of the weight's shape, so it works at any width; without beta the rows
    are independent and each has its own step.

    Args:
        compressed: W_c, ``[out, in]``.
        target: mean of y x'^T, ``[out, in]`` float32.
        second_moment: H = mean of x' x'^T, ``[in, in]`` float32.
        ridge: relative regularization, > 0.
        directions: R, ``[k, out]`` float32 orthonormal; needed with beta.
        beta: extra weight of the error along R.
        kept: ``[out, in]`` bool, the weights solved for; by default those that are not zero.

    Returns:
        W', ``[out, in]`` float32, exactly 0 where not ``kept``.
    """
    scale = mx.maximum(mx.diag(second_moment).mean(), 1e-30)
    moment = second_moment / scale
    start = compressed.astype(mx.float32)
    kept = (compressed != 0 if kept is None else kept).astype(mx.float32)
    along = None if beta == 0 else directions

    def weigh(rows: mx.array) -> mx.array:
        return rows if along is None else rows + beta * (along.T @ (along @ rows))

    def apply(rows: mx.array) -> mx.array:
        return kept * (weigh(rows @ moment) + ridge * rows)

    row_weight = 1.0 if along is None else 1.0 + beta * mx.square(along).sum(axis=0)[:, None]
    diagonal = row_weight * mx.diag(moment)[None] + ridge
    axes = -1 if along is None else None

    def dot(one: mx.array, other: mx.array) -> mx.array:
        return (one * other).sum(axis=axes, keepdims=True)

    residual = kept * weigh(target / scale - start @ moment)
    change = mx.zeros_like(start)
    preconditioned = residual / diagonal
    step_direction = preconditioned
    size = dot(residual, preconditioned)
    goal = size * REFIT_TOLERANCE**2
    for _ in range(REFIT_ITERATIONS):
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
