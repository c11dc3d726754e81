"""What is counted while a file is encoded, for what a report must say: zeros, and scales that float16 cannot hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aird_mlx.gguf_export.outtypes import scheme_of


@dataclass
class Tally:
    """What was counted while a file was encoded.

    Attributes:
        weights: of the blocks' linears.
        zeros_before: exact zeros among them, as stored.
        zeros: exact zeros among them, as a runtime decodes them.
        zeros_kept: what is zero in both.
        ordinary_zeros: how many would be zero, as stored, if nothing had been pruned.
        scales: scales and biases that went into float16.
        inexact_scales: of these, those that float16 does not hold.
        anew: weights whose codes were chosen anew, so that zeros stay exactly zero.
    """

    weights: int = 0
    zeros_before: int = 0
    zeros: int = 0
    zeros_kept: int = 0
    ordinary_zeros: float = 0.0
    scales: int = 0
    inexact_scales: int = 0
    anew: int = 0

    def add(self, other: Tally) -> None:
        """Count what was counted elsewhere too."""
        for name, count in vars(other).items():
            setattr(self, name, getattr(self, name) + count)

    @property
    def sparsity(self) -> float:
        """Share of zeros in what was written."""
        return self.zeros / max(self.weights, 1)

    @property
    def sparsity_before(self) -> float:
        """Share of zeros in what was stored."""
        return self.zeros_before / max(self.weights, 1)

    @property
    def retention(self) -> float:
        """Share of the zeros that were stored and are zero in what was written; 1 where there were none."""
        return self.zeros_kept / self.zeros_before if self.zeros_before else 1.0

    @property
    def pruned(self) -> float:
        """Share of the weights that are zero, as stored, for no other reason than pruning; about."""
        return (self.zeros_before - self.ordinary_zeros) / max(self.weights, 1)


def ordinary_zeros(quantization: Mapping[str, Any] | None) -> float:
    """About the share of exact zeros in a weight that was not pruned: those of a normal distribution.

    MLX's groups reach to about 2.6 standard deviations, and have a code for zero.

    >>> round(ordinary_zeros({"mode": "affine", "bits": 4, "group_size": 64}), 2), ordinary_zeros(None)
    (0.14, 0.0)
    """
    return 0.0 if quantization is None else math.erf(2.6 / (2 ** scheme_of(quantization)[1] - 1) / math.sqrt(2))
