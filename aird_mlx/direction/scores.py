"""How strongly a next-token distribution refuses, and how far two distributions are apart: arrays in, arrays out.

This module does not know where logits come from; it is given tokens and does not know what they say.
Source: Arditi et al. 2024, arXiv:2406.11717.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx

from aird_mlx.errors import DirectionError

# A token opens refusals when it has this probability there, and is this many times likelier there than in answers.
OPENING_SHARE = 0.02
OPENING_RATIO = 4.0


def refusal_tokens(refused: mx.array, answered: mx.array) -> list[int]:
    """The tokens a model's refusals start with, likeliest first.

    Taken from what the model deems likely, not only from what it says first: a greedy model that knows several openings
    says one of them, but is refusing with the probability of all.

    Args:
        refused: logits ``[prompt, vocab]`` after prompts that the model refused.
        answered: logits ``[prompt, vocab]`` after prompts that it answered.

    Raises:
        DirectionError: refusals start like answers do, so no token tells them apart.

    >>> refusal_tokens(mx.array([[9.0, 1.0, 8.5]]), mx.array([[0.0, 9.0, 8.0]]))
    [0]
    """
    there = mx.softmax(refused.astype(mx.float32), axis=-1).mean(axis=0)
    elsewhere = mx.softmax(answered.astype(mx.float32), axis=-1).mean(axis=0)
    is_opening = (there >= OPENING_SHARE) & (there >= OPENING_RATIO * elsewhere)
    likeliest_first = mx.argsort(-there).tolist()
    tokens = [token for token in likeliest_first[: int(1 / OPENING_SHARE)] if is_opening[token].item()]
    if not tokens:
        raise DirectionError(
            f"direction: no first token of {refused.shape[0]} refusals is likelier there than in answers; refusals "
            "that start in their own way are needed. Use more or clearer harmful prompts."
        )
    return tokens


def refusal_log_odds(logits: mx.array, tokens: Sequence[int]) -> mx.array:
    """``log p - log(1 - p)`` with p the summed probability of the refusal tokens.

    Args:
        logits: ``[..., vocab]``.
        tokens: ids of the tokens refusals start with.

    Returns:
        ``[...]`` float32.

    Source:
        Arditi et al. 2024, arXiv:2406.11717, section 2.3.

    >>> refusal_log_odds(mx.zeros((1, 4)), [0, 1]).tolist()
    [0.0]
    """
    logits = logits.astype(mx.float32)
    chosen = mx.array(list(tokens))
    is_refusal = (mx.arange(logits.shape[-1])[:, None] == chosen).any(axis=1)
    inside = mx.logsumexp(mx.where(is_refusal, logits, -float("inf")), axis=-1)
    outside = mx.logsumexp(mx.where(is_refusal, -float("inf"), logits), axis=-1)
    return inside - outside


def kl_divergence(reference: mx.array, other: mx.array) -> mx.array:
    """KL(reference || other) in nats over the last axis, from logits; shapes broadcast. Of equal logits it is 0."""
    first, powers, total = _exponentials(reference)
    second, _, other_total = _exponentials(other)
    return (powers * (first - second)).sum(axis=-1) / total.squeeze(-1) + mx.log(other_total / total).squeeze(-1)


def _exponentials(logits: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Logits less their greatest, what e to their power is, and its sum; one exponential a logit is what costs here."""
    logits = logits.astype(mx.float32)
    logits = logits - mx.stop_gradient(logits.max(axis=-1, keepdims=True))
    powers = mx.power(math.e, logits)  # on a CPU a third of the time of mx.exp
    return logits, powers, powers.sum(axis=-1, keepdims=True)


def cosine(one: mx.array, other: mx.array) -> float:
    """Cosine of two vectors ``[hidden]``; 0 when one of them is 0."""
    norms = mx.linalg.norm(one) * mx.linalg.norm(other)
    return float(((one * other).sum() / mx.maximum(norms, 1e-12)).item())
