"""The driver: walk the blocks of a compressed model and solve for the `Patch` a plan asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx

from aird_mlx.activations import TokenBatch, Walk, flatten_counted
from aird_mlx.errors import UsageError
from aird_mlx.model import ChatModel
from aird_mlx.patch import LinearPatch, Patch, changed_weight, patched, plain_weight, scaled
from aird_mlx.repair.closed_form import (
    least_squares_change,
    least_squares_inside_mask,
    refit_weight,
    restore_change,
    spread_inside_mask,
)
from aird_mlx.repair.distillation import distill
from aird_mlx.repair.reconstruction import reconstruct_block

RULES = ("paper", "restore", "least-squares", "refit", "reconstruct", "distill")

# The rule whose patch ``distill`` goes on from.
STARTS_FROM = "reconstruct"

# Sets of calibration tokens: whole dialogues and texts, or only what users say.
TOKENS = ("all", "prompts")

# Rules that see activations, and so calibration tokens, of both models.
_CALIBRATED = ("least-squares", "refit", "reconstruct")
_REGULARIZED = ("least-squares", "refit")


@dataclass(frozen=True)
class RepairPlan:
    """What to solve for.

    Attributes:
        rule: one of `RULES`.
        blocks: whose residual writers (``paper``, ``restore``, ``least-squares``) or linears (the others) are changed.
        strength: how much of the change is made; alpha of ``paper``, for the others 1 is what they solve for.
        beta: extra weight of the error along the directions: of ``refit`` and ``reconstruct``, and of
            ``least-squares`` inside the mask, where 0 makes the smallest edit and more the one that writes least
            across the directions.
        ridge: of ``least-squares`` and ``refit``, relative to the mean diagonal of the inputs' second moments.
        rank: how many of the directions given are used.
        tokens: which calibration tokens it is solved on, a key of `TOKENS`.
        inside_mask: keep every zero of the compressed model (rules that choose linears again always do).
        steps: per block, of ``reconstruct``; ``distill`` goes on from there with as many for all blocks together.
    """

    rule: str
    blocks: tuple[int, ...]
    strength: float = 1.0
    beta: float = 0.0
    ridge: float = 0.01
    rank: int = 1
    tokens: str = "all"
    inside_mask: bool = True
    steps: int = 200


def solve_patch(
    model: ChatModel,
    dense: ChatModel,
    calibration: Sequence[TokenBatch],
    directions: mx.array,
    plan: RepairPlan,
    *,
    start: Patch | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Patch:
    """Solve for the change of ``model`` that ``plan`` asks for; both models are left as found.

    Blocks and, in them, linears are walked in data order, and each solve sees the compressed model with everything
    before it already repaired, at strength 1.

    Args:
        model: the compressed model.
        dense: the model it was made from.
        calibration: token batches whose counted tokens enter the least squares.
        directions: of the dense model, ``[hidden]`` or ``[k, hidden]`` float32, orthonormal; the refusal direction
            comes first.
        plan: what to solve for.
        start: of ``distill``, the patch it goes on from; by default what `STARTS_FROM` gives, but for weights that are
            stored coarsely: there it goes on from what was rounded to them.
        progress: called with (blocks done, blocks), or with (steps done, steps) while distilling.

    Raises:
        UsageError: an unknown rule, or blocks the model does not have.
    """
    if plan.rule not in RULES:
        raise UsageError(f"repair: rule is {plan.rule!r}; one of {', '.join(RULES)} is needed. Choose one of them.")
    count = len(model.blocks)
    if not all(0 <= block < count for block in plan.blocks):
        raise UsageError(f"repair: blocks are {list(plan.blocks)}; 0 to {count - 1} are needed. Choose blocks it has.")
    if plan.rule == "distill":
        later = progress
        if start is None and not model.stored:
            first = replace(plan, rule=STARTS_FROM, strength=1.0)
            start = solve_patch(model, dense, calibration, directions, first, progress=_half(progress, 0))
            later = _half(progress, 1)
        parts = _solve_distillation(model, dense, calibration, start, plan, later)
    else:
        used = directions.reshape(-1, directions.shape[-1])[: plan.rank]
        parts = _solve_blocks(model, dense, calibration, used, plan, progress)
    ridge = plan.ridge if plan.rule in _REGULARIZED else 0.0
    return scaled(Patch(plan.rule, 1.0, ridge, tuple(parts), beta=plan.beta), plan.strength)


def _half(progress: Callable[[int, int], None], half: int) -> Callable[[int, int], None]:
    """For the progress of the first (0) or the second (1) half of the work."""
    return lambda done, total: progress(100 * half + 100 * done // max(total, 1), 200)


def _solve_blocks(
    model: ChatModel,
    dense: ChatModel,
    calibration: Sequence[TokenBatch],
    directions: mx.array,
    plan: RepairPlan,
    progress: Callable[[int, int], None],
) -> list[LinearPatch]:
    originals: list[tuple[int, str, mx.array]] = []
    parts: list[LinearPatch] = []

    def apply(part: LinearPatch) -> None:
        linear = model.linear(part.block, part.name)
        originals.append((part.block, part.name, linear.weight))
        linear.weight = changed_weight(model, part)
        mx.eval(linear.weight)
        parts.append(part)

    solve_block = _SOLVERS[plan.rule]
    walks = (Walk(dense, calibration), Walk(model, calibration)) if plan.rule in _CALIBRATED else None
    try:
        for block in range(max(plan.blocks, default=-1) + 1):
            if block in plan.blocks:
                solve_block(model, dense, walks, block, directions, plan, apply)
            if walks and block < max(plan.blocks):
                walks[0].advance()
                walks[1].advance()
            progress(block + 1, max(plan.blocks) + 1)
    finally:
        for block, name, weight in reversed(originals):
            model.linear(block, name).weight = weight
    return parts


Walks = tuple[Walk, Walk] | None
Apply = Callable[[LinearPatch], None]


def _solve_writers(
    model: ChatModel, dense: ChatModel, walks: Walks, block: int, directions: mx.array, plan: RepairPlan, apply: Apply
) -> None:
    for name in model.architecture.writers:
        original, compressed = dense.linear(block, name).weight, model.linear(block, name).weight
        kept = model.kept(block, name)
        if plan.rule == "paper":
            along = directions @ compressed.astype(mx.float32)
        elif plan.rule == "restore":
            along = restore_change(directions, original, compressed)
        else:
            assert walks is not None
            moments = paired_moments(*walks, name)
            if plan.inside_mask and plan.beta:
                solved = least_squares_inside_mask(
                    directions, original, compressed, *moments, plan.ridge, plan.beta, kept=kept
                )
                apply(_replaced(model, block, name, solved))
                continue
            along = least_squares_change(directions, original, compressed, *moments, plan.ridge)
        if plan.inside_mask:
            delta = spread_inside_mask(directions, along, kept)
            apply(LinearPatch(block, name, delta=delta.astype(compressed.dtype)))
        else:
            apply(LinearPatch(block, name, left=directions.T, right=along))


def _solve_refit(
    model: ChatModel, dense: ChatModel, walks: Walks, block: int, directions: mx.array, plan: RepairPlan, apply: Apply
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
                directions=directions if is_writer else None,
                beta=plan.beta if is_writer else 0.0,
                kept=model.kept(block, name),
            )
            apply(_replaced(model, block, name, refitted))


def _solve_reconstruction(
    model: ChatModel, dense: ChatModel, walks: Walks, block: int, directions: mx.array, plan: RepairPlan, apply: Apply
) -> None:
    assert walks is not None
    wanted = [walks[0].run_block(index) for index in range(len(walks[0].batches))]
    mx.eval(wanted)
    found = reconstruct_block(walks[1], wanted, steps=plan.steps, directions=directions, beta=plan.beta, seed=block)
    for name, weight in found.items():
        apply(_replaced(model, block, name, weight))


def _solve_distillation(
    model: ChatModel,
    dense: ChatModel,
    calibration: Sequence[TokenBatch],
    start: Patch | None,
    plan: RepairPlan,
    progress: Callable[[int, int], None],
) -> list[LinearPatch]:
    reference = Walk(dense, calibration)
    reference.move_to(len(dense.blocks))
    parts = () if start is None else start.parts
    begun = {(part.block, part.name): plain_weight(model, part.block, part.name) + part.change() for part in parts}
    with patched(model, start or Patch(plan.rule, 1.0, 0.0, ())):
        walk = Walk(model, calibration)
        found = distill(walk, reference, plan.blocks, steps=plan.steps, start=begun, progress=progress)
    return [_replaced(model, block, name, weight) for (block, name), weight in found.items()]


def _replaced(model: ChatModel, block: int, name: str, weight: mx.array) -> LinearPatch:
    """The part that turns the weight a linear has into ``weight``, float32."""
    change = weight - plain_weight(model, block, name)
    return LinearPatch(block, name, delta=change.astype(model.linear(block, name).weight.dtype))


_SOLVERS = {
    "paper": _solve_writers,
    "restore": _solve_writers,
    "least-squares": _solve_writers,
    "refit": _solve_refit,
    "reconstruct": _solve_reconstruction,
}


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
