"""Which plans a rule is searched over: a first guess, what may be changed about it, and how strongly it is applied."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from aird_mlx.repair import RepairPlan, start_of

# Weights of the error along the direction that are tried beside none.
BETA = 3.0
# Inside the mask least squares starts from this weight of what is wanted along r against what should stay across it.
LEAST_SQUARES_BETA = 30.0
# How many directions a plan may use.
MOST_DIRECTIONS = 3


@dataclass(frozen=True)
class PlanSpace:
    """The plans of one rule.

    Attributes:
        first: the plan that is solved first.
        axes: fields of the plan with the values to try instead, one field after the other, the best kept.
        strengths: how much of each solved change is tried; no strength is solved for again.
    """

    first: RepairPlan
    axes: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    strengths: tuple[float, ...] = (1.0,)

    def neighbours(self, plan: RepairPlan, axis: int) -> Iterator[RepairPlan]:
        """``plan`` with each other value of one axis."""
        name, values = self.axes[axis]
        for value in values:
            if getattr(plan, name) != value:
                yield replace(plan, **{name: value})


def spaces_for(
    rule: str, *, source_layer: int, blocks: int, inside_mask: bool, distillable: bool = True
) -> list[PlanSpace]:
    """The spaces a rule is searched in; ``auto`` is all rules, ``distill`` only where its memory fits.

    >>> [space.first.rule for space in spaces_for("auto", source_layer=3, blocks=8, inside_mask=True)]
    ['reconstruct', 'distill', 'paper', 'restore', 'least-squares', 'refit']
    >>> spaces_for("paper", source_layer=3, blocks=8, inside_mask=True)[0].strengths
    (1.0, 0.5, 2.0, 4.0, 8.0)
    """
    everything = tuple(range(blocks))
    before_source = tuple(range(max(source_layer, 1)))
    near_source = before_source[-3:]
    beta = LEAST_SQUARES_BETA if inside_mask else 0.0
    spread = (("beta", (0.0,)),) if inside_mask else ()
    distill, is_start = RepairPlan("distill", everything), distillable and rule == "auto"
    reconstruct = start_of(distill) if is_start else RepairPlan("reconstruct", everything)  # solved once for both
    spaces = [
        PlanSpace(reconstruct),
        PlanSpace(distill),
        PlanSpace(
            RepairPlan("paper", before_source[-1:], inside_mask=inside_mask), strengths=(1.0, 0.5, 2.0, 4.0, 8.0)
        ),
        PlanSpace(
            RepairPlan("restore", before_source, inside_mask=inside_mask),
            (("blocks", (everything,)), ("rank", (MOST_DIRECTIONS,))),
            (1.0, 2.0),
        ),
        PlanSpace(
            RepairPlan("least-squares", before_source, beta=beta, ridge=0.1, inside_mask=inside_mask),
            (
                ("blocks", (near_source, everything)),
                ("ridge", (0.001,)),
                ("tokens", ("prompts",)),
                ("rank", (MOST_DIRECTIONS,)),
                *spread,
            ),
            (1.0, 0.5, 1.5),
        ),
        PlanSpace(RepairPlan("refit", everything), (("beta", (BETA,)), ("ridge", (0.1,)))),
    ]
    usable = [space for space in spaces if distillable or rule == "distill" or space.first.rule != "distill"]
    return [space for space in usable if rule in ("auto", space.first.rule)]
