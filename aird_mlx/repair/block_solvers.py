"""What each rule does with one block: from both models standing at it to the changes of its linears.

A solver gives each change to ``apply`` as soon as it is found, so that the linears after it see the repaired ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from aird_mlx.activations import Walk
from aird_mlx.model import ChatModel
from aird_mlx.patch import LinearPatch, plain_weight
from aird_mlx.repair.closed_form import (
    least_squares_change,
    least_squares_inside_mask,
    refit_weight,
    restore_change,
    spread_inside_mask,
)
from aird_mlx.repair.moments import before_norm, paired_expert_moments, paired_moments
from aird_mlx.repair.plan import RepairPlan
from aird_mlx.repair.reconstruction import reconstruct_block

Walks = tuple[Walk, Walk] | None
Apply = Callable[[LinearPatch], None]
Moments = tuple[mx.array, mx.array] | None


@dataclass(frozen=True)
class _Linear:
    """A linear's weight in both models: ``[out, in]``, of fused experts ``[expert, out, in]``.

    Attributes:
        original: the dense model's.
        compressed: the compressed one's, as it is computed with.
        before: the same without rounding.
        kept: bool, what pruning left of it.
    """

    original: mx.array
    compressed: mx.array
    before: mx.array
    kept: mx.array

    def expert(self, index: int) -> _Linear:
        """One of fused experts."""
        return _Linear(self.original[index], self.compressed[index], self.before[index], self.kept[index])


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
    original, compressed = linear.original, linear.compressed
    if plan.rule == "paper":
        along = directions @ compressed.astype(mx.float32)
    elif plan.rule == "restore" or moments is None:
        along = restore_change(directions, original, compressed)
    elif plan.inside_mask and plan.beta:
        solved = least_squares_inside_mask(
            directions, original, compressed, *moments, plan.ridge, plan.beta, kept=linear.kept
        )
        return {"delta": (solved - linear.before).astype(compressed.dtype)}
    else:
        along = least_squares_change(directions, original, compressed, *moments, plan.ridge)
    if plan.inside_mask:
        return {"delta": spread_inside_mask(directions, along, linear.kept).astype(compressed.dtype)}
    return {"left": directions.T, "right": along}


def _linear(model: ChatModel, dense: ChatModel, block: int, name: str) -> _Linear:
    return _Linear(
        original=_dense_weight(model, dense, block, name),
        compressed=model.linear(block, name).weight,
        before=plain_weight(model, block, name),
        kept=model.kept(block, name),
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
    if linear.original.ndim == 2:
        assert not isinstance(moments, list)
        return solve(linear, moments)
    each: list[dict[str, mx.array]] = []
    for expert in range(linear.original.shape[0]):
        each.append(solve(linear.expert(expert), moments[expert] if isinstance(moments, list) else None))
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
                if own is None:  # an expert that sees too few tokens keeps its weights
                    return {"delta": mx.zeros_like(linear.compressed)}
                refitted = refit_weight(
                    linear.original, linear.compressed, *own, plan.ridge, directions=along, beta=beta, kept=linear.kept
                )
                return {"delta": (refitted - linear.before).astype(linear.compressed.dtype)}

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
        apply(replaced(model, block, name, found.pop(name)))


def replaced(model: ChatModel, block: int, name: str, weight: mx.array) -> LinearPatch:
    """The part that turns the weight a linear has into ``weight``, float32."""
    change = weight - plain_weight(model, block, name)
    return LinearPatch(block, name, delta=change.astype(model.linear(block, name).weight.dtype))


SOLVERS = {
    "paper": _solve_writers,
    "restore": _solve_writers,
    "least-squares": _solve_writers,
    "refit": _solve_refit,
    "reconstruct": _solve_reconstruction,
}
