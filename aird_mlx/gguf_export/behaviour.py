"""What an exported file does on the prompts and texts the MLX model was measured on, run by llama.cpp."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aird_mlx.evaluation import perplexity
from aird_mlx.gguf_export.likelihood import log_likelihoods
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
        sums = log_likelihoods(
            runtime.logits,
            [ids for ids, _ in texts],
            [first for _, first in texts],
            lambda done, total: progress(total + done, 2 * total),
        )
    tokens = sum(len(ids) - max(first, 1) for ids, first in texts)
    return Behaviour(answers, perplexity(-sum(sums), tokens), tokens)
