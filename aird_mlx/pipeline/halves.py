"""How a repair is searched for; of a quantized model in two halves, before the rounding and with it.

Rounding undoes much of a repair made before it, and a repair made after it cannot choose the scales. So what pruning
broke is repaired first, in plain numbers; what comes out is quantized, with scales of its own; and then weights are
moved on with the rounding in every step (docs/method.md has what other orders give).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import mlx.core as mx

from aird_mlx.activations import TokenBatch
from aird_mlx.direction import Direction
from aird_mlx.model import ChatModel
from aird_mlx.patch import LinearPatch, Patch
from aird_mlx.pipeline.result import limits_of
from aird_mlx.reference import Reference
from aird_mlx.repair import RULES, STARTS_FROM, fits_in_memory
from aird_mlx.report import RepairFigures
from aird_mlx.search import Choice, Validation, choose_repair, spaces_for, tried_plans
from aird_mlx.settings import RepairSettings
from aird_mlx.stages import calibrations, refusal_directions, validation_of


class Search:
    """Searches for repairs of models made from one dense model, all on the same validation prompts."""

    def __init__(self, settings: RepairSettings, reference: Reference, direction: Direction) -> None:
        self._settings, self._reference, self._direction = settings, reference, direction

    def choose(
        self, model: ChatModel, rule: str, progress: Callable[[int, int], None], *, distilled_later: bool = False
    ) -> Choice:
        """The repair of ``model`` that measures best, of a rule or of all; ``distill`` not where that comes later."""
        return choose_repair(
            model,
            self._reference.model,
            spaces_for(
                rule,
                source_layer=self._direction.layer,
                blocks=len(model.blocks),
                inside_mask=not self._settings.allow_dense,
                distillable=self.is_distillable and not distilled_later,
            ),
            self._calibrations,
            self._directions,
            self._validation,
            limits=limits_of(self._settings),
            progress=progress,
        )

    @cached_property
    def _calibrations(self) -> dict[str, list[TokenBatch]]:
        return calibrations(self._reference)

    @cached_property
    def _directions(self) -> mx.array:
        return refusal_directions(self._reference, self._direction)

    @cached_property
    def _validation(self) -> Validation:
        return validation_of(self._reference, batch_size=self._settings.batch_size)

    @property
    def is_distillable(self) -> bool:
        """Whether the memory that there is allows to distill."""
        return fits_in_memory(self._reference.model)


def first_rule(rule: str) -> str:
    """What is searched before the rounding: distillation waits for it.

    >>> first_rule("distill"), first_rule("refit")
    ('reconstruct', 'refit')
    """
    return STARTS_FROM if rule == "distill" else rule


def second_rule(rule: str, *, is_pruned: bool, is_distillable: bool) -> str | None:
    """What is searched with the rounding; None where one half is all.

    >>> second_rule("auto", is_pruned=True, is_distillable=True)
    'distill'
    >>> [second_rule("refit", is_pruned=pruned, is_distillable=True) for pruned in (True, False)]
    [None, 'refit']
    """
    if rule == "auto":
        return "distill" if is_distillable else STARTS_FROM
    return rule if RULES[rule].descends or not is_pruned else None


def figures_of(choice: Choice) -> RepairFigures:
    """A choice as the report has it; sparsity lost is counted when it is folded."""
    return RepairFigures(
        rule=choice.patch.rule,
        layers=choice.patch.layers,
        strength=choice.patch.strength,
        rank=choice.patch.rank,
        sparsity_lost=0.0,
        ridge=choice.patch.ridge,
        beta=choice.patch.beta,
        tokens=choice.plan.tokens,
        why=choice.why,
        tried=tried_plans(choice.trials, choice.front),
        validated=choice.prompts,
    )


def joined(first: RepairFigures | None, second: RepairFigures | None) -> RepairFigures:
    """Two halves as one repair, named after the second; at least one is there."""
    if first is None or second is None:
        only = first or second
        assert only is not None
        return replace(only, rank=None)
    why = f"before quantization {first.rule}: {first.why}; with the rounding {second.rule}: {second.why}"
    layers = sorted({*first.layers, *second.layers})
    return replace(second, layers=layers, rank=None, why=why, tried=[*first.tried, *second.tried])


def difference(before: ChatModel, after: ChatModel, figures: RepairFigures) -> Patch:
    """What changes every linear of one quantized model into that of another, whatever their scales."""

    def part(block: int, name: str) -> LinearPatch:
        change = _held(after, block, name) - _held(before, block, name)
        mx.eval(change)
        return LinearPatch(block, name, delta=change)

    parts = tuple(part(block, name) for block, name, _ in before.linears())
    return Patch(figures.rule, 1.0, figures.ridge or 0.0, parts, beta=figures.beta)


def _held(model: ChatModel, block: int, name: str) -> mx.array:
    """The weight of a linear in float32, exactly as it is stored."""
    stored = model.stored.get(model.path(block, name))
    weight: mx.array = model.linear(block, name).weight
    return weight.astype(mx.float32) if stored is None else stored.values()
