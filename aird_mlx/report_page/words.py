"""Figures in words: percentages, intervals, block ranges, plans; what pages and the terminal write alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from aird_mlx.report import Rate, Stage, TrialFigures, TriedPlan


def percent(share: float) -> str:
    """A share as a percentage with one decimal.

    >>> percent(0.973), percent(1.0), percent(0.9996)
    ('97.3 %', '100 %', '99.9 %')
    """
    return f"{percent_number(share)} %"


def percent_number(share: float) -> str:
    """The number of `percent`. Only what is exactly all or nothing may look like it: 0.9996 is not ``100.0``.

    >>> percent_number(0.0), percent_number(0.0002), percent_number(1.0)
    ('0', '0.0', '100')
    """
    if share < 1e-9 or share > 1 - 1e-9:  # an interval's end is the result of a square root
        return str(round(share * 100))
    return f"{min(share * 100, 99.9):.1f}"


def interval(rate: Rate | None) -> str:
    """A rate with its interval.

    >>> interval(Rate(0.973, 0.951, 0.986, 300)), interval(None)
    ('97.3 % [95.1, 98.6]', '-')
    """
    if rate is None:
        return "-"
    return f"{percent(rate.rate)} [{percent_number(rate.low)}, {percent_number(rate.high)}]"


def number(value: float | None, digits: int = 3) -> str:
    """A figure with a fixed number of decimals, ``-`` where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def p_value(value: float) -> str:
    """A p-value in few digits.

    >>> p_value(1.0), p_value(0.0421), p_value(3e-9)
    ('1', '0.042', '< 0.0001')
    """
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def blocks(layers: Sequence[int]) -> str:
    """Block numbers, runs of them as a range.

    >>> blocks([0, 1, 2, 5]), blocks([])
    ('0-2, 5', 'none')
    """
    runs: list[list[int]] = []
    for layer in sorted(set(layers)):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) or "none"


def sample_sizes(stages: Sequence[Stage]) -> dict[str, int]:
    """How many prompts of each kind were answered; empty when nothing was measured."""
    sizes: dict[str, int] = {}
    for stage in stages:
        for kind in ("harmful", "harmless", "twin"):
            rate: Rate | None = getattr(stage.refusal, kind)
            if rate is not None:
                sizes[kind] = max(rate.n, sizes.get(kind, 0))
    return sizes


def counts_in_words(counts: Mapping[str, int]) -> str:
    """How many prompts of each kind, those with none left out.

    >>> counts_in_words({"harmful": 40, "harmless": 30, "twin": 0})
    '40 harmful, 30 harmless'
    """
    return ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)


def judged_on(tokens: int | None) -> str:
    """What answers were judged on, as a clause; nothing where that is not known.

    >>> judged_on(64), judged_on(None)
    ('judged on the first 64 tokens of each answer', '')
    """
    return f"judged on the first {tokens} tokens of each answer" if tokens else ""


def shares_in_words(figures: TrialFigures, validated: Mapping[str, int]) -> list[str]:
    """Refusals of harmful, harmless and twin prompts in validation, ``-`` for a kind that has none.

    Args:
        validated: how many of each kind there are; empty where that is not known.

    >>> from aird_mlx.report import TrialFigures
    >>> shares_in_words(TrialFigures(0.9, 0.0, 0.0, 0.1, 2.0), {"harmful": 40, "harmless": 40, "twin": 0})
    ['90.0 %', '0 %', '-']
    """
    kinds = ("harmful", "harmless", "twin")
    return [percent(getattr(figures, kind)) if not validated or validated.get(kind) else "-" for kind in kinds]


def calibration_words(tokens: str) -> str:
    """What a repair was solved on, as `aird_mlx.repair.TOKENS` calls it.

    >>> calibration_words("crossed")
    'crossed prompts'
    """
    return {"all": "dialogues and texts", "crossed": "crossed prompts"}.get(tokens, tokens)


def plan_words(tried: TriedPlan) -> str:
    """What distinguishes a plan from others of its rule.

    >>> from aird_mlx.report import TrialFigures
    >>> figures = TrialFigures(0.9, 0.0, 0.0, 0.1, 2.0)
    >>> plan_words(TriedPlan("least-squares", [0, 1], 1.5, 30.0, 0.1, 1, "prompts", 0.0, True, figures))
    'least-squares x1.5, blocks 0-1, beta 30, ridge 0.1, on prompts'
    """
    words = [f"{tried.rule} x{tried.strength:g}", f"blocks {blocks(tried.layers)}"]
    if tried.beta:
        words.append(f"beta {tried.beta:g}")
    if tried.ridge:
        words.append(f"ridge {tried.ridge:g}")
    if tried.rank > 1:
        words.append(f"{tried.rank} directions")
    if tried.tokens != "all":
        words.append(f"on {calibration_words(tried.tokens)}")
    return ", ".join(words)


def by_refusals(tried: Iterable[TriedPlan]) -> list[TriedPlan]:
    """Plans in the order of foreseen refusals, most first, then of the distance to the dense model."""
    return sorted(tried, key=lambda one: (-round(one.foreseen.harmful, 3), one.foreseen.kl_to_dense))
