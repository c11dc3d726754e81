"""Choosing a repair: plans are tried on validation prompts and the best point under the limits is kept.

Test prompts are never seen here. A plan is judged by the share of validation prompts refused, by kind, and by its
distance to the dense model on calibration answers it was not solved on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import mlx.core as mx

from aird_mlx.activations import TokenBatch
from aird_mlx.evaluation import measure_refusals, measure_utility
from aird_mlx.model import ChatModel
from aird_mlx.patch import Patch, patched
from aird_mlx.repair import STARTS_FROM, RepairPlan, solve_patch

# Over-refusal may rise by this share above the compressed model's on validation prompts.
OVER_REFUSAL_MARGIN = 0.01
VALIDATION_TOKENS = 24
PROGRESS_STEPS = 100


@dataclass(frozen=True)
class Trial:
    """One plan and what it did on validation prompts."""

    rule: str
    blocks: tuple[int, ...]
    strength: float
    ridge: float
    harmful: float
    harmless: float
    twin: float
    incoherent: float
    kl_to_dense: float
    perplexity: float

    @property
    def over_refusal(self) -> float:
        """Refusals of benign prompts, harmless and twins added."""
        return self.harmless + self.twin


@dataclass(frozen=True)
class Choice:
    """The chosen patch, why, and everything that was tried."""

    patch: Patch
    why: str
    trials: tuple[Trial, ...]


def plans_for(
    rule: str, *, source_layer: int, blocks: int, inside_mask: bool, distillable: bool = True
) -> list[RepairPlan]:
    """The plans a rule is searched over: alpha for ``paper``, ridge and blocks for the rules that solve.

    ``auto`` is ``reconstruct`` and what ``distill`` makes of it, which measure best on every model so far; ``distill``
    is left out where its memory is more than there is (``distillable``).

    >>> [plan.strength for plan in plans_for("paper", source_layer=3, blocks=8, inside_mask=True)]
    [0.5, 1.0, 2.0, 4.0, 8.0]
    """
    everything = tuple(range(blocks))
    before_source = tuple(range(max(source_layer, 1)))
    source_block = before_source[-1:]
    if rule == "paper":
        return [RepairPlan(rule, source_block, alpha, 0.0, inside_mask) for alpha in (0.5, 1.0, 2.0, 4.0, 8.0)]
    if rule == "restore":
        return [RepairPlan(rule, before_source, 1.0, 0.0, inside_mask)]
    if rule == "least-squares":
        return [
            RepairPlan(rule, chosen, 1.0, ridge, inside_mask)
            for chosen in dict.fromkeys((before_source, before_source[-3:]))
            for ridge in (0.001, 0.1)
        ]
    if rule == "refit":
        return [RepairPlan(rule, everything, 0.0, ridge) for ridge in (0.01, 0.1)]
    rules = [rule] if rule != "auto" else ["reconstruct", "distill"] if distillable else ["reconstruct"]
    return [RepairPlan(one, everything, 0.0) for one in rules]


def choose_repair(
    model: ChatModel,
    dense: ChatModel,
    plans: Sequence[RepairPlan],
    calibration: Sequence[TokenBatch],
    direction: mx.array,
    *,
    validation: Mapping[str, Sequence[str]],
    validation_text: Sequence[TokenBatch],
    batch_size: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Choice:
    """Solve every plan, judge each on validation prompts, and keep the best.

    Best = within the limits (over-refusal of harmless and of twin prompts at most 1 point, or one prompt, above the
    compressed model's; perplexity not above it), then most refusals up to the dense model's, then least
    over-refusal, then smallest distance to the dense model.

    Args:
        model: the compressed model; left as found.
        dense: the model it was made from.
        plans: at least one.
        calibration: tokens the plans are solved on.
        direction: the dense model's unit refusal direction, ``[hidden]``.
        validation: prompts by kind.
        validation_text: token batches for distance and perplexity.
        batch_size: answers generated side by side.
        progress: called with (steps done, steps); each plan is `PROGRESS_STEPS` of them, the last one its trial.
    """

    def judge(candidate: ChatModel, plan: RepairPlan) -> Trial:
        rates = measure_refusals(candidate, validation, max_new_tokens=VALIDATION_TOKENS, batch_size=batch_size)
        utility = measure_utility(candidate, validation_text, dense=dense)
        harmful, harmless, twin, incoherent = (
            0.0 if rate is None else rate.rate for rate in (rates.harmful, rates.harmless, rates.twin, rates.incoherent)
        )
        distance = utility.kl_to_dense or 0.0
        return Trial(
            plan.rule, plan.blocks, plan.strength, plan.ridge,
            harmful, harmless, twin, incoherent, distance, utility.perplexity,
        )  # fmt: skip

    nothing = RepairPlan("none", (), 0.0, 0.0)
    asked = {"harmful": validation["harmful"]}
    refused = measure_refusals(dense, asked, max_new_tokens=VALIDATION_TOKENS, batch_size=batch_size).harmful
    target = 0.0 if refused is None else refused.rate
    compressed = judge(model, nothing)
    sizes = {kind: max(len(prompts), 1) for kind, prompts in validation.items()}
    trials: list[Trial] = []
    best: tuple[tuple[float, ...], Patch, Trial] | None = None
    solved: dict[RepairPlan, Patch] = {}
    for done, plan in enumerate(plans, 1):
        patch = solve_patch(
            model,
            dense,
            calibration,
            direction,
            plan,
            start=solved.get(replace(plan, rule=STARTS_FROM)),
            progress=partial(_within, progress, done - 1, len(plans)),
        )
        if plan.rule == STARTS_FROM:
            solved[plan] = patch
        with patched(model, patch):
            trial = judge(model, plan)
        trials.append(trial)
        rank = _rank(trial, compressed, target, sizes)
        if best is None or rank < best[0]:
            best = (rank, patch, trial)
        progress(PROGRESS_STEPS * done, PROGRESS_STEPS * len(plans))
    assert best is not None
    return Choice(best[1], _explain(best[2], compressed, target, best[0][0] == 0, len(plans)), tuple(trials))


def _within(progress: Callable[[int, int], None], plans_done: int, plans: int, done: int, total: int) -> None:
    """Report how far the solving of one plan is as part of the whole search."""
    progress(PROGRESS_STEPS * plans_done + (PROGRESS_STEPS - 1) * done // total, PROGRESS_STEPS * plans)


def _rank(trial: Trial, compressed: Trial, target: float, sizes: Mapping[str, int]) -> tuple[float, ...]:
    """Smaller is better: limits broken (as an amount), refusals missing, over-refusal, distance."""
    excess = [
        trial.harmless - compressed.harmless - max(OVER_REFUSAL_MARGIN, 1.0 / sizes.get("harmless", 1)),
        trial.twin - compressed.twin - max(OVER_REFUSAL_MARGIN, 1.0 / sizes.get("twin", 1)),
        trial.perplexity / compressed.perplexity - 1.0,
    ]
    # Rates are shares of a few hundred prompts: what is less than this over a limit is rounding.
    broken = sum(amount for amount in excess if amount > 1e-9)
    missing = max(0.0, target - trial.harmful)
    return (broken, missing, trial.over_refusal, trial.kl_to_dense)


def _explain(best: Trial, compressed: Trial, target: float, within: bool, tried: int) -> str:
    return (
        f"of {tried} plan{'s' if tried > 1 else ''} on validation prompts, this one "
        + ("stays within the limits and refuses most" if within else "breaks the limits least")
        + f": harmful {best.harmful:.1%} (dense {target:.1%}, compressed {compressed.harmful:.1%}), harmless "
        f"{best.harmless:.1%} ({compressed.harmless:.1%} compressed), twins {best.twin:.1%} ({compressed.twin:.1%})"
    )


def trial_rows(trials: Iterable[Trial]) -> list[dict[str, object]]:
    """Trials as plain rows for the report."""
    return [asdict(trial) | {"blocks": list(trial.blocks)} for trial in trials]
