"""The next token from its logits: the likeliest, or drawn from the likeliest few."""

from __future__ import annotations

import numpy as np


def choose_token(logits: np.ndarray, temperature: float, top_p: float, random: np.random.Generator) -> int:
    """One token.

    Args:
        logits: ``[vocab]``, floating.
        temperature: 0 takes the likeliest token; above, one is drawn from ``softmax(logits / temperature)``.
        top_p: of those only the likeliest that together have this probability, at least one.
        random: moved on by a draw, and only by one.

    >>> choose_token(np.array([0.0, 3.0, 1.0]), 0.0, 1.0, np.random.default_rng(0))
    1
    >>> choose_token(np.array([0.0, 3.0, 1.0]), 5.0, 0.01, np.random.default_rng(0))
    1
    """
    if temperature <= 0:
        return int(logits.argmax())
    shifted = (logits.astype(np.float64) - logits.max()) / temperature
    order = np.argsort(-shifted, kind="stable")
    probabilities = np.exp(shifted[order])
    cumulative = np.cumsum(probabilities / probabilities.sum())
    kept = int(np.searchsorted(cumulative, top_p)) + 1
    drawn = random.random() * cumulative[min(kept, len(cumulative)) - 1]
    return int(order[min(int(np.searchsorted(cumulative, drawn, side="right")), len(order) - 1)])
