"""SparseGPT: choose the weights to remove and make the others of the same row take over what these did.

A kernel: arrays in, arrays out. H is the second moment of a linear's inputs. Removing a weight changes the linear's
output by an amount that its row's later weights can partly undo; both the score of a weight and the update are in U,
the upper triangular factor of the inverse, ``H^-1 = U^T U``. Columns are passed in blocks, and within a block in runs:
what a run leaves to undo in the columns after it is one matrix product, as in a blocked triangular solve.

Source: Frantar and Alistarh 2023, arXiv:2301.00774, algorithm 1; the authors' damping.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from aird_mlx.errors import ShapeError
from aird_mlx.pruning.masks import check_pattern_width, lowest_mask, n_of_m_mask

BLOCK = 128
DAMPING = 0.01
# Columns that are passed one by one before the rest of their block is updated: long enough for the product to pay.
RUN = 16
# Damping grows tenfold until H can be factored; at ten thousand times its mean diagonal anything can.
MOST_DAMPING = 1e4


@dataclass(frozen=True)
class Sparsified:
    """What `sparsify_weight` made of a weight.

    Attributes:
        weight: ``[out, in]`` of the given type; exactly 0 where removed.
        damping: what was added to the diagonal of H, as a share of its mean; more than asked for if H was singular.
    """

    weight: mx.array
    damping: float


def sparsify_weight(
    weight: mx.array,
    second_moment: mx.array,
    *,
    sparsity: float = 0.5,
    groups: tuple[int, int] | None = None,
    damping: float = DAMPING,
    block: int = BLOCK,
) -> Sparsified:
    """Remove weights and update the rest so that the linear's outputs change least.

    Args:
        weight: W, ``[out, in]``, floating. Read, never written.
        second_moment: H, ``[in, in]`` float32: mean (or sum) of x x^T over the calibration tokens.
        sparsity: fraction of each block of columns to remove, ``0 <= sparsity < 1``; its rows compete.
        groups: (N, M) removes N of each M consecutive inputs of a row instead.
        damping: share of H's mean diagonal that is added to the diagonal; tenfold until H can be factored.
        block: columns per block; with ``groups`` the nearest multiple of M below.

    Returns:
        The new weight and the damping used. Ties are broken by index. An input that was always 0 loses its weights.

    Raises:
        ShapeError: ``second_moment`` is not ``[in, in]``.
        UsageError: M does not divide ``in``, or a sparsity outside [0, 1).

    >>> moment = mx.array([[1.0, 0.9], [0.9, 1.0]])
    >>> sparsify_weight(mx.array([[1.0, 2.0]]), moment, groups=(1, 2)).weight.round(2).tolist()
    [[0.0, 2.8899998664855957]]
    """
    width = weight.shape[1]
    if second_moment.shape != (width, width):
        raise ShapeError(
            f"sparsegpt: second_moment has shape {second_moment.shape}; weight {weight.shape} needs ({width}, {width})."
            " Collect it from this layer's inputs, not its outputs."
        )
    if groups:
        check_pattern_width(width, *groups)
        block = max(1, block // groups[1]) * groups[1]
    factor, is_dead, damping = inverse_factor(second_moment, damping)
    squares = mx.square(mx.diag(factor))
    # [in, out]: a column of the paper is a contiguous row here.
    columns = mx.where(is_dead[:, None], 0.0, weight.astype(mx.float32).T)
    done = []
    for start in range(0, width, block):
        size = min(block, width - start)
        own = factor[start : start + size, start : start + size]
        scale = squares[start : start + size]
        if groups:
            kept, errors = _pass_groups(columns[:size], own, scale, groups)
        else:
            # All rows compete; equals by index of the weight: by row, then by column.
            mask = lowest_mask(_scores(columns[:size], scale), sparsity, scope="matrix").T
            kept, errors = _pass_columns(columns[:size], mask, own)
        columns = columns[size:] - factor[start : start + size, start + size :].T @ errors
        done.append(kept)
        mx.eval(kept, columns)
    # Row by row in memory, as a file gives it back: products of another layout may differ in the last bit.
    return Sparsified(mx.contiguous(mx.concatenate(done).T.astype(weight.dtype)), damping)


def inverse_factor(second_moment: mx.array, damping: float) -> tuple[mx.array, mx.array, float]:
    """U, upper triangular ``[in, in]`` float32, with ``(H + lambda I)^-1 = U^T U``; which inputs are dead; the damping.

    With J the reversal of order, ``J (H + lambda I) J = L L^T`` gives ``U = J L^-1 J``: one factorization and one
    triangular inverse, where the paper inverts and factors again. An input that was always 0 counts as 1 on the
    diagonal, as in the authors' code. lambda is ``damping`` times the mean of the diagonal, and ten times more as long
    as L is not sound: MLX reports no failure, so a pivot has to be positive and each row's length has to be right.
    """
    diagonal = mx.diag(second_moment)
    is_dead = diagonal == 0
    mean = mx.maximum(mx.where(is_dead, 1.0, diagonal).mean(), 1e-30)
    alive = second_moment / mean + mx.diag(is_dead.astype(mx.float32))
    while True:
        damped = alive + damping * mx.eye(alive.shape[0])
        lower = mx.linalg.cholesky(damped[::-1, ::-1], stream=mx.cpu)
        lengths, wanted = mx.square(lower).sum(axis=1), mx.diag(damped)[::-1]
        is_sound = (mx.diag(lower) > 0).all() & (mx.abs(lengths - wanted) <= 1e-3 * wanted).all()
        if is_sound.item() or damping >= MOST_DAMPING:
            break
        damping = max(10 * damping, DAMPING)
    return mx.linalg.tri_inv(lower, stream=mx.cpu)[::-1, ::-1] / mx.sqrt(mean), is_dead, damping


def _scores(columns: mx.array, scale: mx.array) -> mx.array:
    """``w^2 / U_jj^2``, ``[out, size]`` as in the weight, of columns ``[size, out]``; ``scale`` is ``U_jj^2``."""
    return (mx.square(columns) / scale[:, None]).T


def _pass_groups(
    columns: mx.array, factor: mx.array, scale: mx.array, groups: tuple[int, int]
) -> tuple[mx.array, mx.array]:
    """Choose and remove M columns at a time: each choice sees the updates of those before it."""
    removed, size = groups
    kept, errors = [], []
    for start in range(0, factor.shape[0], size):
        now = slice(start, start + size)
        mask = n_of_m_mask(_scores(columns[:size], scale[now]), removed, size).T
        own_kept, own_errors = _pass_columns(columns[:size], mask, factor[now, now])
        columns = columns[size:] - factor[now, start + size :].T @ own_errors
        kept.append(own_kept)
        errors.append(own_errors)
    return mx.concatenate(kept), mx.concatenate(errors)


def _pass_columns(columns: mx.array, mask: mx.array, factor: mx.array) -> tuple[mx.array, mx.array]:
    """Remove the marked weights column by column.

    Args:
        columns: ``[size, out]``, as earlier blocks left them.
        mask: ``[size, out]`` bool, True = remove.
        factor: U's ``[size, size]`` on these columns.

    Returns:
        The new columns, and the errors ``removed weight / U_jj``, both ``[size, out]``.
    """
    kept, errors = [], []
    for start in range(0, factor.shape[0], RUN):
        run = slice(start, min(start + RUN, factor.shape[0]))
        own, own_factor = columns[: run.stop - start], factor[run, run]
        own_errors = []
        for column in range(run.stop - start):
            removed = mx.where(mask[start + column], own[0], 0.0)
            error = removed / own_factor[column, column]
            kept.append(own[0] - removed)
            own_errors.append(error)
            own = own[1:] - own_factor[column, column + 1 :, None] * error
        stacked = mx.stack(own_errors)
        columns = columns[run.stop - start :] - factor[run, run.stop :].T @ stacked
        errors.append(stacked)
    return mx.stack(kept), mx.concatenate(errors)
