"""Which candidate wins, and how sure that is: scores per prompt, resampled over prompts. Arrays in, arrays out.

The candidates themselves stay as they are: what is resampled are the prompts they were scored on, so the intervals
say how far the selection depends on those prompts, and nothing about the prompts the means were taken over.
Source: Arditi et al. 2024, arXiv:2406.11717, section 2.3 and appendix C (the rule); Efron 1979 (the bootstrap).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Filters of Arditi et al., section 2.3 and appendix C.
MAXIMUM_KL = 0.1
MINIMUM_INDUCE = 0.0

RESAMPLES = 1000

Floats = NDArray[np.floating]


def choose(bypass: Floats, induce: Floats, kl: Floats) -> NDArray[np.intp]:
    """The index of the winner along the last axis: of those that pass the filters, the lowest bypass.

    Where nothing passes both filters, those that keep the KL filter compete, since an ablation that breaks the model
    lowers refusals too; where nothing keeps that one either, all do. Among equals the first wins.

    Args:
        bypass, induce, kl: ``[..., candidate]`` mean scores.

    >>> int(choose(np.array([-9.0, -2.0, -3.0]), np.array([1.0, 1.0, -1.0]), np.array([0.2, 0.0, 0.0])))
    1
    """
    gentle = kl <= MAXIMUM_KL
    survives = gentle & (induce >= MINIMUM_INDUCE)
    competes = np.where(gentle.any(axis=-1, keepdims=True), gentle, True)
    competes = np.where(survives.any(axis=-1, keepdims=True), survives, competes)
    return np.where(competes, bypass, np.inf).argmin(axis=-1)


@dataclass(frozen=True)
class Resampled:
    """Mean scores and winners of each resample of the prompts.

    Attributes:
        bypass, induce, kl: ``[resample, candidate]``.
        winners: ``[resample]``, index of the candidate that each resample selects.
    """

    bypass: Floats
    induce: Floats
    kl: Floats
    winners: NDArray[np.intp]

    def shares(self) -> Floats:
        """``[candidate]``: the share of resamples that each candidate wins; sums to 1."""
        return np.bincount(self.winners, minlength=self.bypass.shape[1]) / len(self.winners)

    def interval(self, score: str, candidate: int) -> tuple[float, float]:
        """The 95 % percentile interval of one candidate's mean ``bypass``, ``induce`` or ``kl``."""
        low, high = np.quantile(getattr(self, score)[:, candidate], [0.025, 0.975])
        return float(low), float(high)

    def near_ties(self, candidate: int) -> NDArray[np.bool_]:
        """``[candidate]``: whose bypass cannot be told from that of ``candidate``, itself included.

        Both are scored on the same prompts, so it is their difference that is resampled: a near tie is one whose
        95 % interval of ``bypass - bypass[candidate]`` holds 0.
        """
        low, high = np.quantile(self.bypass - self.bypass[:, [candidate]], [0.025, 0.975], axis=0)
        return (low <= 0) & (high >= 0)


def resample(bypass: Floats, induce: Floats, kl: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> Resampled:
    """Draw the prompts again with replacement, harmful and harmless ones each by themselves, and select each time.

    The draws depend on the numbers of prompts and the seed alone, so two models scored on the same prompts get the
    same draws.

    Args:
        bypass: ``[candidate, harmful prompt]``.
        induce, kl: ``[candidate, harmless prompt]``; a draw takes both from the same prompts.
    """
    generator = np.random.default_rng(seed)
    harmful, harmless = (
        generator.multinomial(count, np.full(count, 1 / count), size=resamples) / count
        for count in (bypass.shape[1], kl.shape[1])
    )
    means = harmful @ bypass.T, harmless @ induce.T, harmless @ kl.T
    return Resampled(*means, choose(*means))
