"""How likely tokens are by the logits of a runtime; float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from aird_mlx.errors import ParityError


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Row-wise, float64."""
    shifted: np.ndarray = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def log_likelihoods(
    logits: Callable[[Sequence[int]], np.ndarray],
    sequences: Sequence[Sequence[int]],
    first_counted: Sequence[int],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[float]:
    """Per sequence the log-likelihood (nats) of its tokens from the first that counts, given those before it.

    Args:
        logits: from a sequence to the logits after each of its tokens, ``[token, vocab]``.
        sequences: token ids, at least two each.
        first_counted: per sequence the first token that counts; the very first cannot, since nothing precedes it.
        progress: called with (sequences done, sequences).

    Raises:
        ParityError: a sequence has no token to predict, or as ``logits`` does.
    """
    found = []
    for ids, first in zip(sequences, first_counted, strict=True):
        start = max(first, 1)
        if start >= len(ids):
            raise ParityError(
                f"llama.cpp: a sequence of {len(ids)} tokens counts from token {start}; a token to predict is "
                "needed. Give longer texts."
            )
        rows = log_softmax(logits(ids)[start - 1 : -1].astype(np.float64))
        found.append(float(rows[np.arange(len(rows)), np.asarray(ids[start:], dtype=np.int64)].sum()))
        progress(len(found), len(sequences))
    return found
