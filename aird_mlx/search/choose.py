"""The search: coarse over all plans, fine among the few that none beats.

Coarse: closed-form rules are solved on a part of the calibration tokens, axis by axis, and judged by one forward pass
over validation dialogues; a solved change is tried at several strengths without being solved again. Rules that descend
take their time once and go on from one another; where they left nothing to be wished for, a rule whose first plan is
far behind is not varied further. Fine: the best plan of each rule, if no other rule's best beats it or has left it far
behind, is solved on all tokens and judged on the answers it generates. Where the best of these still lacks refusals, or
answers in broken text, the distillation goes on over more prompts. Test prompts are never seen here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx

from aird_mlx.activations import TokenBatch, thin_batches
from aird_mlx.gates import Limits
from aird_mlx.model import ChatModel
from aird_mlx.patch import Patch, patched, scaled, sparsity_lost
from aird_mlx.repair import RULES, RepairPlan, goes_on_from, solve_patch
from aird_mlx.report import TrialFigures
from aird_mlx.report_page import counts_in_words
from aird_mlx.search.spaces import PlanSpace
from aird_mlx.search.trial import Bars, Trial, pareto_front, unbeaten
from aird_mlx.search.validation import Validation

# Calibration tokens that closed-form rules are compared on.
COARSE_TOKENS = 4096
# At most so many plans answer. Refusals so many standard errors below others may be as many but for chance.
FINALISTS, FAR = 3, 2.0
# Nothing is gained by varying a plan this many times as far from the dense model as one that lacks no refusals: what
# another block, ridge, beta or strength changes of the distance is a small part of it.
BEHIND = 2.0
# For the progress shown: how much longer than a closed form these take.
LENGTHS = {"reconstruct": 8, "distill": 12}
STEPS = 100


@dataclass(frozen=True)
class Choice:
    """The chosen patch, why, everything that was tried, what none of it beats, and on how many prompts of each kind."""

    patch: Patch
    plan: RepairPlan
    why: str
    trials: tuple[Trial, ...]
    front: tuple[Trial, ...]
    prompts: dict[str, int]


def choose_repair(
    model: ChatModel,
    dense: ChatModel,
    spaces: Sequence[PlanSpace],
    calibration: Mapping[str, Sequence[TokenBatch]],
    directions: mx.array,
    validation: Validation,
    *,
    limits: Limits | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Choice:
    """Search the spaces and keep the best plan on validation prompts.

    Best = within the limits, then as many refusals as the dense model but for chance, then nearest to the dense model
    (`Bars.best`).

    Args:
        model: the compressed model; left as found.
        dense: the model it was made from.
        spaces: at least one.
        calibration: token batches by name (`aird_mlx.repair.TOKENS`), as far as plans ask for them.
        directions: the dense model's, ``[k, hidden]`` float32, orthonormal, the refusal direction first.
        validation: what plans are judged on.
        limits: what a repair may cost.
        progress: called with (steps done, steps).
    """
    search = _Search(model, dense, calibration, directions, validation, limits or Limits(), _Steps(spaces, progress))
    return search.run(spaces)


class _Steps:
    """How far the search is, in `STEPS` per unit of work."""

    def __init__(self, spaces: Sequence[PlanSpace], progress: Callable[[int, int], None]) -> None:
        solves = [(LENGTHS.get(space.first.rule, 1), space) for space in spaces]
        units = sum(cost * (1 + sum(len(values) for _, values in space.axes)) for cost, space in solves)
        further = sum(cost + 1 for cost, space in solves if space.first.rule == "distill")
        self._total = STEPS * (units + FINALISTS + further)
        self._done, self._progress = 0, progress

    def within(self, units: int) -> Callable[[int, int], None]:
        """For the progress of one solve that takes ``units``."""
        begun = self._done
        return lambda done, total: self._progress(begun + (STEPS * units - 1) * done // max(total, 1), self._total)

    def finish(self, units: int) -> None:
        """``units`` of work are done."""
        self._done = min(self._done + STEPS * units, self._total)
        self._progress(self._done, self._total)

    def end(self) -> None:
        """Everything is done, whatever was not needed."""
        self._progress(self._total, self._total)


class _Search:
    def __init__(
        self,
        model: ChatModel,
        dense: ChatModel,
        calibration: Mapping[str, Sequence[TokenBatch]],
        directions: mx.array,
        validation: Validation,
        limits: Limits,
        steps: _Steps,
    ) -> None:
        self.model, self.dense, self.directions = model, dense, directions
        self.calibration, self.validation, self.steps = calibration, validation, steps
        self.coarse = {name: thin_batches(batches, COARSE_TOKENS) for name, batches in calibration.items()}
        self.foreseen = Bars(validation.dense, validation.foresee(model), limits, validation.foreseen_counts)
        self.trials: list[Trial] = []
        self.solved: dict[RepairPlan, Patch] = {}

    def run(self, spaces: Sequence[PlanSpace]) -> Choice:
        judged = self.judge_finalists(self.finalists([self.explore(space) for space in spaces]))
        judged += [self.judge(self.tried(plan)[0]) for plan in self.further(self.best(judged))]
        self.steps.end()
        chosen, patch = self.best(judged)
        trials = tuple(next((new for new, _ in judged if new.plan == trial.plan), trial) for trial in self.trials)
        front = pareto_front(trials, self.target)
        return Choice(
            patch, chosen.plan, self.explain(chosen, len(judged)), trials, tuple(front), self.validation.counts
        )

    def finalists(self, best: Sequence[Trial]) -> list[Trial]:
        """Of the best trial of each space those that none beats in what `Bars.best` asks, unless far from the most.

        The most refusals are those of plans within the limits: one that refuses everything is no measure.
        """
        bars = self.foreseen
        within = bars.least_broken([trial.foreseen for trial in best])

        def costs(trial: Trial) -> tuple[float, ...]:
            found = trial.foreseen
            return (bars.broken(found), bars.missing(found), found.kl_to_dense, trial.sparsity_lost)

        near = [trial for trial in unbeaten(best, costs) if bars.rivals(trial.foreseen, within, FAR)]
        return sorted(near, key=lambda trial: bars.rank(trial.foreseen))[:FINALISTS]

    def judge_finalists(self, finalists: Sequence[Trial]) -> list[tuple[Trial, Patch]]:
        """All of them, but those that are far behind only if the others break limits in what they answer."""
        behind = [trial for trial in finalists if self.is_behind(trial.foreseen)]
        judged = [self.judge(trial) for trial in finalists if trial not in behind]
        found = [_answered(trial) for trial, _ in judged]
        if not found or min(map(self.bars_for(found).broken, found)) > 0:
            judged += map(self.judge, behind)
        return judged

    def best(self, judged: Sequence[tuple[Trial, Patch]]) -> tuple[Trial, Patch]:
        found = [_answered(trial) for trial, _ in judged]
        return judged[self.bars_for(found).best(found)]

    def bars_for(self, found: Sequence[TrialFigures]) -> Bars:
        """What answers are held against.

        What the compressed model refuses of benign prompts excuses a plan that does, too. It is asked only if one does.
        """
        nothing = replace(self.foreseen.compressed, harmless=0.0, twin=0.0)
        bars = Bars(self.validation.answered, nothing, self.foreseen.limits, self.validation.counts)
        return bars if not any(map(bars.broken, found)) else replace(bars, compressed=self.compressed_answers)

    @functools.cached_property
    def compressed_answers(self) -> TrialFigures:
        return self.validation.answer(self.model, self.foreseen.compressed)

    def further(self, best: tuple[Trial, Patch]) -> list[RepairPlan]:
        """Distillation continued over crossed prompts, if the best so far lacks refusals, or answers in broken text."""
        found = _answered(best[0])
        bars = self.bars_for([found])
        wants_nothing = bars.rivals(found, [bars.dense], FAR) and bars.is_coherent(found)
        if "crossed" not in self.calibration or wants_nothing:
            return []
        return [replace(plan, tokens="crossed") for plan in self.solved if plan.rule == "distill"]

    @property
    def target(self) -> float:
        """The dense model's refusals, as foreseen."""
        return self.validation.dense.harmful

    def explore(self, space: PlanSpace) -> Trial:
        """The best foreseen trial of a space: neighbours along each axis in turn, then other strengths."""
        best = self.tried(space.first)
        if self.is_behind(best[0].foreseen):
            return best[0]
        for axis in range(len(space.axes)):
            for plan in list(space.neighbours(best[0].plan, axis)):
                best = self.better(best, self.tried(plan))
        trial, patch = best
        for strength in space.strengths:
            if strength != trial.plan.strength:
                best = self.better(best, self.tried(replace(trial.plan, strength=strength), scaled(patch, strength)))
        return best[0]

    def is_behind(self, figures: TrialFigures) -> bool:
        """Whether a plan within the limits, with all refusals but for chance, is much nearer to the dense model."""
        bars = self.foreseen
        return any(
            bars.broken(other) == 0
            and bars.rivals(other, [bars.dense], FAR)
            and figures.kl_to_dense > BEHIND * other.kl_to_dense
            for other in (trial.foreseen for trial in self.trials)
        )

    def better(self, one: tuple[Trial, Patch], other: tuple[Trial, Patch]) -> tuple[Trial, Patch]:
        return (one, other)[self.foreseen.best([one[0].foreseen, other[0].foreseen])]

    def tried(self, plan: RepairPlan, patch: Patch | None = None) -> tuple[Trial, Patch]:
        """A plan, solved if it has no patch yet, as one pass foresees it."""
        if patch is None:
            patch = scaled(self.solve(plan, coarse=not RULES[plan.rule].descends), plan.strength)
            self.steps.finish(LENGTHS.get(plan.rule, 1))
        trial = self.trial(plan, patch)
        self.trials.append(trial)
        return trial, patch

    def solve(self, plan: RepairPlan, *, coarse: bool) -> Patch:
        """The patch of a plan at strength 1; that of a descending rule is kept."""
        plan = replace(plan, strength=1.0)
        if plan in self.solved:
            return self.solved[plan]
        tokens = (self.coarse if coarse else self.calibration)[plan.tokens]
        earlier = goes_on_from(plan)
        start = None if earlier is None else self.solved.get(earlier)
        progress = self.steps.within(LENGTHS.get(plan.rule, 1))
        patch = solve_patch(self.model, self.dense, tokens, self.directions, plan, start=start, progress=progress)
        if RULES[plan.rule].descends:
            self.solved[plan] = patch
        return patch

    def trial(self, plan: RepairPlan, patch: Patch) -> Trial:
        lost = sparsity_lost(self.model, patch)
        with patched(self.model, patch):
            return Trial(plan, self.validation.foresee(self.model), lost)

    def judge(self, trial: Trial) -> tuple[Trial, Patch]:
        """A finalist solved on all tokens and judged on its answers."""
        patch = scaled(self.solve(trial.plan, coarse=False), trial.plan.strength)
        if not RULES[trial.plan.rule].descends:
            trial = self.trial(trial.plan, patch)
        with patched(self.model, patch):
            trial = replace(trial, answered=self.validation.answer(self.model, trial.foreseen))
        self.steps.finish(1)
        return trial, patch

    def explain(self, chosen: Trial, finalists: int) -> str:
        found = _answered(chosen)
        bars = self.bars_for([found])
        praise = "is within the limits, but for chance"
        if finalists > 1:
            praise = "is within the limits and refuses as often as any that did, both but for chance, and is nearest to"
            praise += " the dense model"
        asked = {kind: count for kind, count in self.validation.counts.items() if count}
        shares = ", ".join(
            f"{'twins' if kind == 'twin' else kind} {getattr(found, kind):.1%} (dense {getattr(bars.dense, kind):.1%})"
            for kind in asked
        )
        return (
            f"of {len(self.trials)} plans tried on validation prompts ({counts_in_words(asked)}), {finalists} answered "
            f"them, and this one {praise if bars.broken(found) == 0 else 'breaks the limits least'}: {shares}"
        )


def _answered(trial: Trial) -> TrialFigures:
    assert trial.answered is not None
    return trial.answered
