"""Controls: what a repair is worth without one of its ingredients, or with another in its place.

A repair that works says nothing about why. Each control changes one thing about the chosen plan: the direction, the
prompts it was calibrated on, or the weight of the direction. Those along other directions are scaled to the norm of the
change along the refusal direction, so that they are as large.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial

import mlx.core as mx

from aird_mlx.model import ChatModel
from aird_mlx.patch import Patch, scaled
from aird_mlx.prompts import KINDS
from aird_mlx.reference import Reference
from aird_mlx.repair import RULES, RepairPlan, goes_on_from, solve_patch
from aird_mlx.search import spaces_for
from aird_mlx.search.spaces import BETA


@dataclass(frozen=True)
class ControlRepair:
    """A control: what it is, and how its patch is solved for."""

    name: str
    meaning: str
    solve: Callable[[], Patch]


def control_repairs(
    model: ChatModel,
    reference: Reference,
    plan: RepairPlan,
    directions: mx.array,
    own_direction: mx.array,
    *,
    source_layer: int,
    seed: int,
) -> Iterator[ControlRepair]:
    """The controls that go with a plan.

    Args:
        model: the compressed model, left as found.
        reference: the dense model with its answers.
        plan: the chosen one.
        directions: the dense model's, ``[k, hidden]`` float32, the refusal direction first.
        own_direction: the compressed model's own refusal direction, ``[hidden]`` float32 unit.
        source_layer: the layer of the refusal direction.
        seed: of the random direction.
    """
    dense = reference.model

    def solve(plan: RepairPlan, directions: mx.array = directions, kinds: tuple[str, ...] = KINDS) -> Patch:
        earlier = goes_on_from(plan)  # what is solved on the same tokens `solve_patch` starts with by itself
        start = None if earlier is None or earlier.tokens == plan.tokens else solve(earlier, directions, kinds)
        return solve_patch(model, dense, reference.calibration(kinds, plan.tokens), directions, plan, start=start)

    rule = RULES[plan.rule]
    if rule.along_directions:
        along = replace(plan, rank=1)
    else:
        spaces = spaces_for("least-squares", source_layer=source_layer, blocks=len(model.blocks), inside_mask=True)
        along = spaces[0].first

    @cache
    def along_r() -> Patch:
        return solve(along)

    def solve_as_large(vector: mx.array) -> Patch:
        return as_large(solve(along, vector), along_r())

    if not rule.along_directions:
        yield ControlRepair(f"{along.rule} along r", "only what is written along r is repaired", along_r)
    random = mx.random.normal(own_direction.shape, key=mx.random.key(seed))
    for name, meaning, vector in (
        ("random direction", "a random direction", random / mx.linalg.norm(random)),
        ("own direction", "the compressed model's own direction", own_direction),
    ):
        yield ControlRepair(
            name, f"{along.rule} along {meaning} instead of r, as large", partial(solve_as_large, vector)
        )
    if rule.sees_activations:
        yield ControlRepair(
            "harmless only", f"{plan.rule} calibrated without harmful and twin prompts",
            lambda: solve(plan, kinds=("harmless",)),
        )  # fmt: skip
    if not rule.along_directions:
        other = 0.0 if plan.beta else BETA
        meaning = f"{plan.rule} with the error along r weighted {1 + other:g} times, chosen was {1 + plan.beta:g}"
        yield ControlRepair(f"beta {other:g}", meaning, lambda: solve(replace(plan, beta=other)))


def as_large(patch: Patch, other: Patch) -> Patch:
    """``patch`` scaled so that its changes together have the norm of those of ``other``."""
    mine, wanted = (
        sum(mx.square(part.change().astype(mx.float32)).sum().item() for part in one.parts) for one in (patch, other)
    )
    return patch if mine == 0 else scaled(patch, patch.strength * (wanted / mine) ** 0.5)
