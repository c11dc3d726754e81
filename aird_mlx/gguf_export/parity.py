"""Does an exported file behave like the model it was made from? Token ids and logits, llama.cpp beside MLX.

Compares what can be compared exactly or in bands: ids of rendered prompts, and the next-token distribution at every
token. Never compares generated text, which differs between backends for good reasons. Knows MLX only as a function
from token ids to logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aird_mlx.errors import ParityError
from aird_mlx.gguf_export.likelihood import log_softmax
from aird_mlx.gguf_export.runtime import LlamaRuntime


@dataclass(frozen=True)
class Parity:
    """How closely llama.cpp follows MLX.

    Attributes:
        tokens_compared: positions whose logits were compared.
        token_ids_equal: every text got the same ids.
        first_difference: the first text and place where ids differ, None if nowhere.
        argmax_agreement: share of positions with the same most likely token.
        max_logit_difference: largest absolute difference over positions and vocabulary.
        mean_kl: mean over positions of KL(MLX || llama.cpp), nats.
    """

    tokens_compared: int
    token_ids_equal: bool
    first_difference: str | None
    argmax_agreement: float
    max_logit_difference: float
    mean_kl: float


def check_parity(
    gguf: Path,
    *,
    texts: Sequence[str],
    token_ids: Sequence[Sequence[int]],
    mlx_logits: Callable[[Sequence[int]], np.ndarray],
    n_threads: int | None = None,
    lora: Path | None = None,
) -> Parity:
    """Run an exported file on the given prompts and measure its distance to MLX.

    Args:
        gguf: the exported file.
        texts: rendered prompts, special tokens written out.
        token_ids: the same prompts as the model's own tokenizer encodes them, without added tokens.
        mlx_logits: from token ids to ``[token, vocab]`` float32 of the MLX model.
        n_threads, lora: of llama.cpp; see `LlamaRuntime`.

    Raises:
        ParityError: nothing to compare, lists of different length, logits of different shape or not finite, or
            llama.cpp cannot run the file.
        DependencyError: llama-cpp-python is not installed.
    """
    if not token_ids or len(texts) != len(token_ids):
        raise ParityError(
            f"parity: {len(texts)} texts and {len(token_ids)} lists of ids; one list for each of at least one text is "
            "needed. Give both for every prompt."
        )
    difference: str | None = None
    agreed, compared, largest, divergence = 0, 0, 0.0, 0.0
    n_ctx = max(64, *(len(ids) for ids in token_ids))
    with LlamaRuntime(gguf, n_ctx=n_ctx, n_threads=n_threads, lora=lora) as runtime:
        for index, (text, ids) in enumerate(zip(texts, token_ids, strict=True)):
            if difference is None:
                difference = _describe_difference(index, list(ids), runtime.tokenize(text))
            ours, theirs = (
                np.asarray(mlx_logits(ids), dtype=np.float64),
                runtime.logits(ids).astype(np.float64),
            )
            if ours.shape != theirs.shape or not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
                raise ParityError(
                    f"parity: text {index}: MLX gives logits of shape {ours.shape}, llama.cpp {theirs.shape}, or some "
                    "are not finite; equal shapes and finite values are needed. Check the exported model."
                )
            agreed += int((ours.argmax(axis=-1) == theirs.argmax(axis=-1)).sum())
            compared += len(ids)
            largest = max(largest, float(np.abs(ours - theirs).max()))
            log_ours, log_theirs = log_softmax(ours), log_softmax(theirs)
            divergence += float((np.exp(log_ours) * (log_ours - log_theirs)).sum())
    return Parity(
        tokens_compared=compared,
        token_ids_equal=difference is None,
        first_difference=difference,
        argmax_agreement=agreed / compared,
        max_logit_difference=largest,
        mean_kl=max(0.0, divergence / compared),
    )


def _describe_difference(index: int, expected: list[int], found: list[int]) -> str | None:
    if expected == found:
        return None
    place = next(
        (at for at, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b),
        min(len(expected), len(found)),
    )
    return (
        f"text {index}, token {place}: the model's tokenizer gives {expected[place : place + 4]} "
        f"(of {len(expected)}), llama.cpp {found[place : place + 4]} (of {len(found)})"
    )
