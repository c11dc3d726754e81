"""What a repair is asked for: the rules there are, a plan's knobs, and which plan goes on from which."""

from __future__ import annotations

from dataclasses import dataclass, replace

from aird_mlx.repair.reconstruction import TOKENS_PER_STEP


@dataclass(frozen=True)
class Rule:
    """What is particular to a rule.

    Attributes:
        along_directions: it writes along the refusal directions, and nothing else.
        sees_activations: of both models, and so needs calibration tokens.
        takes_ridge: `RepairPlan.ridge` means something to it.
        descends: it moves weights by gradients: long, done once and on all tokens, and kept only if it is better.
        all_at_once: its step changes all blocks together, so that both models have to be in memory.
    """

    along_directions: bool = False
    sees_activations: bool = True
    takes_ridge: bool = False
    descends: bool = False
    all_at_once: bool = False


RULES = {
    "paper": Rule(along_directions=True, sees_activations=False),
    "restore": Rule(along_directions=True, sees_activations=False),
    "least-squares": Rule(along_directions=True, takes_ridge=True),
    "refit": Rule(takes_ridge=True),
    "reconstruct": Rule(descends=True),
    "distill": Rule(descends=True, all_at_once=True),
}

# The rule whose patch ``distill`` goes on from. Solved on half the tokens it is no worse a start, though worse an end.
STARTS_FROM, START_TOKENS_PER_STEP = "reconstruct", TOKENS_PER_STEP // 2

# Sets of calibration tokens: whole dialogues and texts; only what users say; all, and dialogues that were crossed.
TOKENS = ("all", "prompts", "crossed")


@dataclass(frozen=True)
class RepairPlan:
    """What to solve for.

    Attributes:
        rule: one of `RULES`.
        blocks: whose residual writers (of rules along the directions) or linears (of the others) are changed.
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
