"""Figures that several results are made of: rates and estimates with their intervals, likelihoods."""

from __future__ import annotations

from dataclasses import dataclass

# Counts the versions of the keys of all results.
SCHEMA = 1


@dataclass(frozen=True)
class Rate:
    """A share of ``n`` prompts with its Wilson 95 % interval; all three in [0, 1]."""

    rate: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class RefusalRates:
    """Refusals by kind of prompt; a kind without prompts is None. ``incoherent`` counts answers that are neither."""

    harmful: Rate | None
    harmless: Rate | None
    twin: Rate | None = None
    incoherent: Rate | None = None


@dataclass(frozen=True)
class Utility:
    """Perplexity over held-out text, and distance to the dense model on the same tokens.

    Attributes:
        perplexity: exp of the mean negative log-likelihood (nats) per token.
        kl_to_dense: mean over tokens of KL(dense || this), nats; 0 for the dense model.
        top1_agreement: share of tokens where both have the same most likely next token.
        tokens: how many tokens were counted.
    """

    perplexity: float
    kl_to_dense: float | None
    top1_agreement: float | None
    tokens: int


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float
