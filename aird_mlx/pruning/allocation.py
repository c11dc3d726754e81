"""How much each block and linear is to lose, so that together they lose what was asked.

``uniform``: all the same. ``owl``: blocks with more outliers among their Wanda scores lose less. ``safety``: what
carries the refusal direction loses less. Kernels spread a total by importance; `allocate_sparsity` measures it on the
model before it is pruned.

Source: OWL: Yin et al. 2023, arXiv:2310.05175. The allocation by the refusal direction is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx

from aird_mlx.errors import UsageError

ALLOCATIONS = ("uniform", "owl", "safety")
OUTLIER_MULTIPLE = 5.0
SPREAD = 0.08
MOST_SPARSITY = 0.99


@dataclass(frozen=True)
class Allocation:
    """What each linear is to lose.

    Attributes:
        kind: of `ALLOCATIONS`.
        sparsities: by (block, name) the fraction of its weights.
    """

    kind: str
    sparsities: Mapping[tuple[int, str], float]


def spread_sparsities(
    importance: Sequence[float], weights: Sequence[int], sparsity: float, spread: float
) -> list[float]:
    """Sparsities that fall with importance, whose mean over all weights is the one asked for.

    The most important part loses ``2 * spread`` less than the least important one, as in OWL; where that would be
    outside [0, 0.99], it is cut there and the others make up for it.

    Args:
        importance: per part, not negative.
        weights: how many weights each part has.
        sparsity: wanted mean, in [0, 0.99].
        spread: OWL's lambda, >= 0.

    Raises:
        UsageError: a negative spread, which would remove most from what matters most.

    >>> [round(one, 3) for one in spread_sparsities([0.0, 1.0, 2.0], [1, 1, 1], 0.5, 0.1)]
    [0.6, 0.5, 0.4]
    """
    if not spread >= 0:
        raise UsageError(f"prune: the spread of an allocation is {spread}; 0 or more is needed. Use {SPREAD}.")
    low, high = min(importance), max(importance)
    scale = 2 * spread / (high - low) if high > low else 0.0
    down = [scale * (one - low) for one in importance]
    most = max(MOST_SPARSITY, sparsity)

    def shifted(shift: float) -> list[float]:
        return [min(max(shift - one, 0.0), most) for one in down]

    below, above = 0.0, most + 2 * spread
    for _ in range(200):
        middle = (below + above) / 2
        mean = sum(one * count for one, count in zip(shifted(middle), weights, strict=True)) / sum(weights)
        below, above = (middle, above) if mean < sparsity else (below, middle)
    return shifted((below + above) / 2)
