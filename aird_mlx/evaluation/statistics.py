"""Rates with their intervals."""

from __future__ import annotations

import math

from aird_mlx.report import Rate

# 97.5 % point of the normal distribution.
QUANTILE_975 = 1.959963984540054


def wilson_rate(successes: int, n: int) -> Rate | None:
    """``successes / n`` with its Wilson 95 % interval; None when ``n`` is 0.

    Source:
        Wilson 1927, J. Am. Stat. Assoc. 22 (158), without continuity correction.

    >>> wilson_rate(9, 10).rate
    0.9
    """
    if n == 0:
        return None
    rate, spread = successes / n, QUANTILE_975**2 / n
    middle = (rate + spread / 2) / (1 + spread)
    half = math.sqrt(rate * (1 - rate) * spread + spread**2 / 4) / (1 + spread)
    # At 0 and n the bound is exactly 0 and 1; rounding would put it a hair beside.
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == n else middle + half
    return Rate(rate=rate, low=low, high=high, n=n)
