"""AIRD: solve for a `Patch` that brings a compressed model's refusals back.

Rules (r: the dense model's unit refusal direction; W_o, W_c: original and compressed weight; x, x': a linear's inputs
in the dense and in the compressed model, on the same tokens):

- ``paper``: ``W_c + alpha r r^T W_c`` on the writers of the source block (reconstructed from arXiv:2504.04215).
- ``restore``: ``W_c + r r^T (W_o - W_c)``: what the original wrote along r is written again.
- ``least-squares``: ``W_c + r delta^T`` with delta chosen so that ``r^T W' x'`` meets ``r^T W_o x``.
- ``refit``: the surviving weights are chosen again so that ``W' x'`` meets ``W_o x``; not low-rank, mask kept.

Kernels come first, the driver `solve_patch` last. Choosing among rules is not done here (see ``search``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx

from aird_mlx.activations import TokenBatch, Walk, flatten_counted
from aird_mlx.errors import ShapeError, UsageError
from aird_mlx.model import ChatModel
from aird_mlx.patch import LinearPatch, Patch, changed_weight

RULES = ("paper", "restore", "least-squares", "refit")

REFIT_ITERATIONS = 200
REFIT_TOLERANCE = 1e-5


@dataclass(frozen=True)
class RepairPlan:
    """What to solve for.

    Attributes:
        rule: one of `RULES`.
        blocks: the blocks whose linears (``refit``) or residual writers (the others) are changed.
        strength: alpha of ``paper``; beta of ``refit``; 1 for the others.
        ridge: regularization, relative to the mean diagonal of the inputs' second moments.
        inside_mask: keep every zero of the compressed model (``refit`` always does).
    """

    rule: str
    blocks: tuple[int, ...]
    strength: float = 1.0
    ridge: float = 0.01
    inside_mask: bool = True


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


def solve_patch(
    model: ChatModel,
    dense: ChatModel,
    calibration: Sequence[TokenBatch],
    direction: mx.array,
    plan: RepairPlan,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Patch:
    """Solve for the change of ``model`` that ``plan`` asks for; both models are left as found.

    Blocks and, in them, linears are walked in data order, and each solve sees the compressed model with everything
    before it already repaired.

    Args:
        model: the compressed model.
        dense: the model it was made from.
        calibration: token batches whose counted tokens enter the least squares.
        direction: r, ``[hidden]`` float32 unit, of the dense model.
        plan: rule, blocks, strength and ridge.
        progress: called with (blocks done, blocks).

    Raises:
        UsageError: an unknown rule, or blocks the model does not have.
    """
    if plan.rule not in RULES:
        raise UsageError(f"repair: rule is {plan.rule!r}; one of {', '.join(RULES)} is needed. Choose one of them.")
    count = len(model.blocks)
    if not all(0 <= block < count for block in plan.blocks):
        raise UsageError(f"repair: blocks are {list(plan.blocks)}; 0 to {count - 1} are needed. Choose blocks it has.")
    originals: list[tuple[int, str, mx.array]] = []
    parts: list[LinearPatch] = []

    def apply(part: LinearPatch) -> None:
        linear = model.linear(part.block, part.name)
        originals.append((part.block, part.name, linear.weight))
        linear.weight = changed_weight(linear.weight, part)
        mx.eval(linear.weight)
        parts.append(part)

    solve_block = _SOLVERS[plan.rule]
    needs_activations = plan.rule in ("least-squares", "refit")
    walks = (Walk(dense, calibration), Walk(model, calibration)) if needs_activations else None
    try:
        for block in range(max(plan.blocks, default=-1) + 1):
            if block in plan.blocks:
                solve_block(model, dense, walks, block, direction, plan, apply)
            if walks:
                walks[0].advance()
                walks[1].advance()
            progress(block + 1, max(plan.blocks) + 1)
    finally:
        for block, name, weight in reversed(originals):
            model.linear(block, name).weight = weight
    return Patch(plan.rule, plan.strength, plan.ridge if needs_activations else 0.0, tuple(parts))


Walks = tuple[Walk, Walk] | None
Apply = Callable[[LinearPatch], None]


def _solve_writers(
    model: ChatModel, dense: ChatModel, walks: Walks, block: int, direction: mx.array, plan: RepairPlan, apply: Apply
) -> None:
    for name in model.architecture.writers:
        original, compressed = dense.linear(block, name).weight, model.linear(block, name).weight
        if plan.rule == "paper":
            along = plan.strength * (direction @ compressed.astype(mx.float32))
        elif plan.rule == "restore":
            along = restore_change(direction, original, compressed)
        else:
            assert walks is not None
            moments = paired_moments(*walks, name)
            along = least_squares_change(direction, original, compressed, *moments, plan.ridge)
        if plan.inside_mask:
            delta = spread_inside_mask(direction, along, compressed != 0)
            apply(LinearPatch(block, name, delta=delta.astype(compressed.dtype)))
        else:
            apply(LinearPatch(block, name, left=direction[:, None], right=along[None]))


def _solve_refit(
    model: ChatModel, dense: ChatModel, walks: Walks, block: int, direction: mx.array, plan: RepairPlan, apply: Apply
) -> None:
    assert walks is not None
    for group in model.architecture.linears:
        moments = paired_moments(*walks, group[0])
        for name in group:
            compressed = model.linear(block, name).weight
            is_writer = name in model.architecture.writers
            refitted = refit_weight(
                dense.linear(block, name).weight,
                compressed,
                *moments,
                plan.ridge,
                direction=direction if is_writer else None,
                beta=plan.strength if is_writer else 0.0,
            )
            delta = (refitted - compressed.astype(mx.float32)).astype(compressed.dtype)
            apply(LinearPatch(block, name, delta=delta))


_SOLVERS = {"paper": _solve_writers, "restore": _solve_writers, "least-squares": _solve_writers, "refit": _solve_refit}


def paired_moments(dense: Walk, compressed: Walk, name: str) -> tuple[mx.array, mx.array]:
    """Second moments of a linear's inputs over the counted tokens of both walks' current block.

    Returns:
        H = mean of x' x'^T and G = mean of x x'^T, each ``[in, in]`` float32; x dense, x' compressed.
    """
    second, cross = mx.array(0.0), mx.array(0.0)
    tokens = 0.0
    for index, batch in enumerate(compressed.batches):
        seen = compressed.inputs_of(index, [name])[name]
        wanted = dense.inputs_of(index, [name])[name]
        drifted, original = flatten_counted(seen, batch.counted), flatten_counted(wanted, batch.counted)
        second = second + drifted.T @ drifted
        cross = cross + original.T @ drifted
        tokens += batch.counted.sum().item()
        mx.eval(second, cross)
    return second / max(tokens, 1.0), cross / max(tokens, 1.0)
