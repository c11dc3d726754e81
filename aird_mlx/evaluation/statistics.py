"""Rates with their intervals. The mathematics is scipy's; this module only shapes it."""

from __future__ import annotations

from aird_mlx.report import Rate


def wilson_rate(successes: int, n: int) -> Rate | None:
    """``successes / n`` with its Wilson 95 % interval; None when ``n`` is 0.

    >>> wilson_rate(9, 10).rate
    0.9
    """
    if n == 0:
        return None
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(confidence_level=0.95, method="wilson")
    return Rate(rate=successes / n, low=float(interval.low), high=float(interval.high), n=n)
