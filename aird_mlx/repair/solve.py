"""The driver: walk the blocks of a compressed model and solve for the `Patch` a plan asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import mlx.core as mx
import mlx.nn as nn

from aird_mlx.activations import TokenBatch, Walk
from aird_mlx.errors import UsageError
from aird_mlx.model import ChatModel
from aird_mlx.patch import LinearPatch, Patch, changed_weight, patched, plain_weight, scaled
from aird_mlx.repair.block_solvers import SOLVERS, replaced
from aird_mlx.repair.distillation import distill
from aird_mlx.repair.plan import RULES, RepairPlan, start_of


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
    if RULES[plan.rule].all_at_once:
        later = progress
        if start is None and not model.stored:
            first = start_of(plan)
            start = solve_patch(model, dense, calibration, directions, first, progress=_half(progress, 0))
            later = _half(progress, 1)
        parts = _solve_distillation(model, dense, calibration, start, plan, later)
    else:
        used = directions.reshape(-1, directions.shape[-1])[: plan.rank]
        parts = []
        for block, own in solve_blocks(model, dense, calibration, used, plan):
            parts += own
            progress(block + 1, max(plan.blocks) + 1)
    ridge = plan.ridge if RULES[plan.rule].takes_ridge else 0.0
    return scaled(Patch(plan.rule, 1.0, ridge, tuple(parts), beta=plan.beta), plan.strength)


def _half(progress: Callable[[int, int], None], half: int) -> Callable[[int, int], None]:
    """For the progress of the first (0) or the second (1) half of the work."""
    return lambda done, total: progress(100 * half + 100 * done // max(total, 1), 200)


def solve_blocks(
    model: ChatModel,
    dense: ChatModel,
    calibration: Sequence[TokenBatch],
    directions: mx.array,
    plan: RepairPlan,
    *,
    is_repaired: Callable[[int], bool] = lambda block: False,
) -> Iterator[tuple[int, list[LinearPatch]]]:
    """`solve_patch` block by block, at strength 1, for all rules but ``distill``.

    Args:
        model, dense, calibration, plan: see `solve_patch`.
        directions: as many as the plan uses.
        is_repaired: whether a block has been given its repaired weights before; it is passed as it is then.

    Yields:
        Each block up to the last of the plan, with the changes of its linears. The block has its repaired weights
        then; when the next one is asked for it gets its own back, unless the model is streamed.
    """
    solve_block = SOLVERS[plan.rule]
    walks = (Walk(dense, calibration), Walk(model, calibration)) if RULES[plan.rule].sees_activations else None
    last = max(plan.blocks, default=-1)
    for block in range(last + 1):
        originals: list[tuple[nn.Linear, mx.array]] = []
        parts: list[LinearPatch] = []

        def apply(
            part: LinearPatch,
            originals: list[tuple[nn.Linear, mx.array]] = originals,
            parts: list[LinearPatch] = parts,
        ) -> None:
            linear = model.linear(part.block, part.name)
            if model.stream is None:
                originals.append((linear, linear.weight))
            linear.weight = changed_weight(model, part)
            mx.eval(linear.weight)
            parts.append(part)

        try:
            if not is_repaired(block) and block in plan.blocks:
                solve_block(model, dense, walks, block, directions, plan, apply)
            yield block, parts
            if walks and block < last:
                for walk in walks:
                    walk.move_to(block + 1)
        finally:
            for linear, weight in reversed(originals):
                linear.weight = weight
        model.release(block)
        dense.release(block)


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
    return [replaced(model, block, name, weight) for (block, name), weight in found.items()]
