"""The driver: walk the blocks of a compressed model and solve for the `Patch` a plan asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import mlx.nn as nn

from aird_mlx.activations import TokenBatch, Walk
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
from aird_mlx.repair.moments import before_norm, paired_expert_moments, paired_moments
from aird_mlx.repair.reconstruction import TOKENS_PER_STEP, reconstruct_block

RULES = ("paper", "restore", "least-squares", "refit", "reconstruct", "distill")

# The rule whose patch ``distill`` goes on from. Solved on half the tokens it is no worse a start, though worse an end.
STARTS_FROM, START_TOKENS_PER_STEP = "reconstruct", TOKENS_PER_STEP // 2

# Sets of calibration tokens: whole dialogues and texts; only what users say; all, and dialogues that were crossed.
TOKENS = ("all", "prompts", "crossed")

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
        tokens_per_step: of ``reconstruct``.
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
    tokens_per_step: int = TOKENS_PER_STEP


def goes_on_from(plan: RepairPlan) -> RepairPlan | None:
    """The plan whose patch a descent goes on from, None for plans that start from the compressed model.

    >>> goes_on_from(RepairPlan("distill", (0,))).rule
    'reconstruct'
    >>> goes_on_from(RepairPlan("distill", (0,), tokens="crossed")) == RepairPlan("distill", (0,))
    True
    """
    if plan.rule != "distill":
        return None
    return replace(plan, strength=1.0, tokens="all") if plan.tokens == "crossed" else start_of(plan)


def start_of(plan: RepairPlan) -> RepairPlan:
    """What a first distillation goes on from."""
    return replace(plan, rule=STARTS_FROM, strength=1.0, tokens_per_step=START_TOKENS_PER_STEP)


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
    ridge = plan.ridge if plan.rule in _REGULARIZED else 0.0
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
    solve_block = _SOLVERS[plan.rule]
    walks = (Walk(dense, calibration), Walk(model, calibration)) if plan.rule in _CALIBRATED else None
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


Walks = tuple[Walk, Walk] | None
Apply = Callable[[LinearPatch], None]
Moments = tuple[mx.array, mx.array] | None
# Original weight, compressed one as it is computed with, the same without rounding, and what pruning left.
_Linear = tuple[mx.array, mx.array, mx.array, mx.array]


def _solve_writers(
    model: ChatModel, dense: ChatModel, walks: Walks, block: int, directions: mx.array, plan: RepairPlan, apply: Apply
) -> None:
    layout = model.layout(block)
    for part in layout.parts:
        own = before_norm(model, block, part.norm, directions)
        fields = _solve_each(
            lambda linear, moments, own=own: _written(plan, own, linear, moments),  # type: ignore[misc]
            _linear(model, dense, block, part.writer),
            _moments(walks, part.writer),
        )
        apply(LinearPatch(block, part.writer, **fields))


def _written(plan: RepairPlan, directions: mx.array, linear: _Linear, moments: Moments) -> dict[str, mx.array]:
    """The change of one writer along the directions, as fields of a `LinearPatch`.

    Without moments, of an expert that sees too few tokens, least squares falls back to restoring.
    """
    original, compressed, before, kept = linear
    if plan.rule == "paper":
        along = directions @ compressed.astype(mx.float32)
    elif plan.rule == "restore" or moments is None:
        along = restore_change(directions, original, compressed)
    elif plan.inside_mask and plan.beta:
        solved = least_squares_inside_mask(directions, original, compressed, *moments, plan.ridge, plan.beta, kept=kept)
        return {"delta": (solved - before).astype(compressed.dtype)}
    else:
        along = least_squares_change(directions, original, compressed, *moments, plan.ridge)
    if plan.inside_mask:
        return {"delta": spread_inside_mask(directions, along, kept).astype(compressed.dtype)}
    return {"left": directions.T, "right": along}


def _linear(model: ChatModel, dense: ChatModel, block: int, name: str) -> _Linear:
    """What a linear was, is, is without rounding, and what pruning left of it."""
    original = _dense_weight(model, dense, block, name)
    return (
        original,
        model.linear(block, name).weight,
        plain_weight(model, block, name),
        model.kept(block, name),
    )


def _dense_weight(model: ChatModel, dense: ChatModel, block: int, name: str) -> mx.array:
    """A linear's weight in the dense model; of fused experts, those that the compressed one has left."""
    weight: mx.array = dense.linear(block, name).weight
    if block in model.kept_experts and model.layout(block).is_expert(name):
        return weight[mx.array(model.kept_experts[block])]
    return weight


def _moments(walks: Walks, name: str) -> Moments | list[Moments]:
    """Moments of the inputs of a linear, of fused experts one pair each; None for rules that need none."""
    if walks is None:
        return None
    if walks[1].layout.is_expert(name):
        return list(paired_expert_moments(*walks, name))
    return paired_moments(*walks, name)


def _solve_each(
    solve: Callable[[_Linear, Moments], dict[str, mx.array]], linear: _Linear, moments: Moments | list[Moments]
) -> dict[str, mx.array]:
    """``solve`` on a linear, or on each of fused experts ``[expert, out, in]``, whose results are stacked."""
    if linear[0].ndim == 2:
        assert not isinstance(moments, list)
        return solve(linear, moments)
    each: list[dict[str, mx.array]] = []
    for expert in range(linear[0].shape[0]):
        original, compressed, before, kept = (array[expert] for array in linear)
        each.append(solve((original, compressed, before, kept), moments[expert] if isinstance(moments, list) else None))
        mx.eval(each[-1])
    # A change can be low-rank for one expert and not for another only where the rule differs, which it does not.
    return {key: mx.stack([one[key] for one in each]) for key in each[0]}


def _solve_refit(
    model: ChatModel, dense: ChatModel, walks: Walks, block: int, directions: mx.array, plan: RepairPlan, apply: Apply
) -> None:
    layout = model.layout(block)
    for group in layout.groups:
        moments = _moments(walks, group[0])
        for name in group:
            is_writer = name in layout.writers
            along = before_norm(model, block, layout.part_of(name).norm, directions) if is_writer else None
            beta = plan.beta if is_writer else 0.0

            def solve(
                linear: _Linear, own: Moments, along: mx.array | None = along, beta: float = beta
            ) -> dict[str, mx.array]:
                original, compressed, before, kept = linear
                if own is None:  # an expert that sees too few tokens keeps its weights
                    return {"delta": mx.zeros_like(compressed)}
                refitted = refit_weight(original, compressed, *own, plan.ridge, directions=along, beta=beta, kept=kept)
                return {"delta": (refitted - before).astype(compressed.dtype)}

            fields = _solve_each(solve, _linear(model, dense, block, name), moments)
            apply(LinearPatch(block, name, **fields))


def _solve_reconstruction(
    model: ChatModel, dense: ChatModel, walks: Walks, block: int, directions: mx.array, plan: RepairPlan, apply: Apply
) -> None:
    assert walks is not None
    wanted = [walks[0].run_block(index) for index in range(len(walks[0].batches))]
    mx.eval(wanted)
    walks[0].advance(wanted)  # the dense block is not needed any more
    found = reconstruct_block(
        walks[1],
        wanted,
        steps=plan.steps,
        tokens_per_step=plan.tokens_per_step,
        directions=directions,
        beta=plan.beta,
        seed=block,
    )
    for name in list(found):
        apply(_replaced(model, block, name, found.pop(name)))


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
