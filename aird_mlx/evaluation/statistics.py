"""Rates with their intervals. The mathematics is scipy's; this module only shapes it."""

from __future__ import annotations

from aird_mlx.report import Rate


def wilson_rate(successes: int, n: int) -> Rate | None:
    """``successes / n`` with its Wilson 95 % interval; None when ``n`` is 0.

    Source:
        Wilson 1927, J. Am. Stat. Assoc. 22 (158), without continuity correction.

    >>> wilson_rate(9, 10).rate
    0.9
    """
    if n == 0:
        return None
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(confidence_level=0.95, method="wilson")
    # At 0 and n the bound is exactly 0 and 1; rounding puts it a hair beside.
    low, high = max(0.0, float(interval.low)), min(1.0, float(interval.high))
    return Rate(successes / n, 0.0 if successes == 0 else low, 1.0 if successes == n else high, n)
