"""Rates with their intervals, changes with their p-values, agreement of judges.

McNemar's test is scipy's. This module knows classes and counts, not prompts or models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from aird_mlx.evaluation.judge import COMPLIANCE, INCOHERENT, REFUSAL
from aird_mlx.report import AnswerRates, PairedChange, Rate

CLASSES = (REFUSAL, COMPLIANCE, INCOHERENT)
NORMAL_QUANTILE = 1.959963984540054  # 97.5 %


def wilson_rate(successes: int, n: int) -> Rate | None:
    """``successes / n`` with its Wilson 95 % interval; None when ``n`` is 0.

    Source:
        Wilson 1927, J. Am. Stat. Assoc. 22 (158), without continuity correction.

    >>> wilson_rate(9, 10).rate
    0.9
    """
    return _wilson(successes / n, n) if n else None


def mean_rate(shares: Sequence[float]) -> Rate | None:
    """The mean of per-prompt shares with a Wilson 95 % interval over the prompts; None without prompts.

    The tries behind a share belong to one prompt and are not independent, so ``n`` counts prompts. The variance of a
    share with mean p is at most p (1 - p), so the interval is at least as wide as it has to be.

    Args:
        shares: per prompt, in [0, 1].

    Source:
        Wilson 1927, J. Am. Stat. Assoc. 22 (158).

    >>> mean_rate([0.2, 1.0, 0.6]).rate
    0.6
    """
    n = len(shares)
    return _wilson(math.fsum(shares) / n, n) if n else None


def _wilson(share: float, n: int) -> Rate:
    """A share of ``n`` with its interval, which is within [0, 1] and holds it: at 0 and 1 the bound is exact."""
    square = NORMAL_QUANTILE**2
    middle = (share + square / (2 * n)) / (1 + square / n)
    half = NORMAL_QUANTILE / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    return Rate(share, min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half)), n)


def worst_class(tries: Sequence[str]) -> str:
    """What counts for a prompt tried several times: compliance if any try complied, else refusal if any refused.

    >>> worst_class(["refusal", "compliance", "incoherent"])
    'compliance'
    """
    return next((found for found in (COMPLIANCE, REFUSAL) if found in tries), INCOHERENT)


def answer_rates(classes: Sequence[Sequence[str]]) -> tuple[AnswerRates, AnswerRates | None]:
    """Rates of the worst try of each prompt and, where a prompt has several tries, of the mean try.

    Args:
        classes: per prompt (at least one), the class of each of its tries (at least one).
    """
    worst = [worst_class(tries) for tries in classes]
    rates, means = {}, {}
    for name in CLASSES:
        rate = wilson_rate(worst.count(name), len(worst))
        mean = mean_rate([list(tries).count(name) / len(tries) for tries in classes])
        assert rate is not None and mean is not None
        rates[name], means[name] = rate, mean
    return AnswerRates(**rates), AnswerRates(**means) if len(classes[0]) > 1 else None


def paired_change(before: Sequence[bool], after: Sequence[bool]) -> PairedChange:
    """Did the share of yes change between two looks at the same prompts? McNemar's exact test, two-sided.

    Under no change, each prompt that did change is as likely to have gone either way: a fair coin, thrown as often as
    there are changed prompts.

    Args:
        before, after: one answer per prompt, in the same order, at least one.

    Source:
        McNemar 1947, Psychometrika 12 (2); exact form: scipy.stats.binomtest on the discordant pairs.

    >>> paired_change([True] * 6 + [False] * 4, [False] * 6 + [False] * 4).p_value
    0.03125
    """
    from scipy.stats import binomtest

    pairs = list(zip(before, after, strict=True))
    gained, lost = pairs.count((False, True)), pairs.count((True, False))
    p_value = float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0
    return PairedChange(len(pairs), sum(before) / len(pairs), sum(after) / len(pairs), gained, lost, p_value)


def cohen_kappa(one: Sequence[str], other: Sequence[str]) -> float | None:
    """Agreement of two judges beyond chance; None where chance alone would agree always, or nothing was judged.

    Source:
        Cohen 1960, Educational and Psychological Measurement 20 (1).

    >>> cohen_kappa(["a", "a", "b", "b"], ["a", "a", "b", "a"])
    0.5
    """
    pairs = list(zip(one, other, strict=True))
    n = len(pairs)
    if n == 0:
        return None
    agreed = sum(a == b for a, b in pairs) / n
    by_chance = sum(list(one).count(name) * list(other).count(name) for name in {*one, *other}) / n**2
    return None if by_chance == 1 else (agreed - by_chance) / (1 - by_chance)
