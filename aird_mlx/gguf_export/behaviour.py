"""What an exported file does on the prompts and texts the MLX model was measured on, run by llama.cpp."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aird_mlx.gguf_export.runtime import LlamaRuntime


@dataclass(frozen=True)
class Behaviour:
    """Greedy answers and perplexity of a GGUF file in llama.cpp.

    Attributes:
        answers: new token ids per prompt, in the order given.
        perplexity: over the counted tokens of the texts.
        tokens: how many those are.
    """

    answers: list[list[int]]
    perplexity: float
    tokens: int


def run_exported(
    gguf: Path,
    prompts: Sequence[Sequence[int]],
    texts: Sequence[tuple[Sequence[int], int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Behaviour:
    """Answer every prompt and score every text with the file itself.

    Args:
        gguf: the exported file.
        prompts: token ids of rendered prompts.
        texts: token ids, and the first token that counts.
        max_new_tokens: longer answers are cut.
        stop_ids: tokens that end an answer.
        progress: called with (steps done, steps); answers are the first half, texts the second.

    Raises:
        DependencyError: llama-cpp-python is not installed.
        ParityError: llama.cpp cannot run the file.
    """
    longest = max([len(prompt) + max_new_tokens for prompt in prompts] + [len(ids) for ids, _ in texts])
    with LlamaRuntime(gguf, n_ctx=longest + 8) as runtime:
        answers = runtime.generate(prompts, max_new_tokens, stop_ids)
        progress(len(texts), 2 * len(texts))
        loss, tokens = 0.0, 0
        for done, (ids, first) in enumerate(texts, 1):
            start = max(first, 1)
            logits = runtime.logits(ids)[start - 1 : -1].astype(np.float64)
            highest = logits.max(axis=-1, keepdims=True)
            normalizer = np.log(np.exp(logits - highest).sum(axis=-1)) + highest[:, 0]
            chosen = logits[np.arange(len(logits)), np.asarray(ids[start:], dtype=np.int64)]
            loss, tokens = loss + float((normalizer - chosen).sum()), tokens + len(logits)
            progress(len(texts) + done, 2 * len(texts))
    return Behaviour(answers, math.exp(min(loss / max(tokens, 1), 700.0)), tokens)
