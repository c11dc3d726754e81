"""Answers to many prompts at once, greedy or drawn, by mlx-lm's continuous batching.

An answer is generated to its end or to ``max_new_tokens``: stopping once the judge has seen an opening would be faster,
but the judge reads on after it (for repetitions, and for answers that follow a disclaimer), so the class could change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import batch_generate
from mlx_lm.models.cache import KVCache, make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper

from aird_mlx.activations import shared_length

BATCH_SIZE = 64
# A beginning that all prompts of a batch share is run once if it has so many tokens: system prompts, mostly.
SHARED_TOKENS = 32


class LanguageModel(Protocol):
    """All that evaluation needs of a model: any family that mlx-lm runs, quantized or not."""

    @property
    def network(self) -> nn.Module:
        """From ids ``[batch, token]`` to logits ``[batch, token, vocab]``."""

    @property
    def tokenizer(self) -> TokenizerWrapper:
        """mlx-lm's wrapper, with a chat template."""


def generate_answers(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 128,
    batch_size: int = BATCH_SIZE,
    temperature: float = 0.0,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[int]]:
    """Continuations, without the end-of-turn token.

    Args:
        model: read only.
        prompts: token ids of rendered prompts.
        max_new_tokens: longer answers are cut.
        batch_size: how many are generated side by side.
        temperature: 0 takes the likeliest token; above, tokens are drawn from ``softmax(logits / temperature)``.
        seed: of the draws; the same call gives the same answers, and prompts that occur twice get draws of their own.
        progress: called with (prompts done, prompts).

    Returns:
        Token ids per prompt, in the order given.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    draw = _sampler(temperature, seed) if temperature else None
    # Prompts of like length share a batch, so that little of it is padding.
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        shared, caches = _share_prefix(model.network, [prompts[index] for index in chosen])
        response = batch_generate(
            model.network,
            model.tokenizer,
            [list(prompts[index][shared:]) for index in chosen],
            prompt_caches=caches,
            max_tokens=max_new_tokens,
            return_token_ids=True,
            completion_batch_size=batch_size,
            prefill_batch_size=batch_size,
            sampler=draw,
        )
        assert response.token_ids is not None
        for index, tokens in zip(chosen, response.token_ids, strict=True):
            answers[index] = list(tokens)
        progress(min(start + batch_size, len(order)), len(order))
    return answers


def _share_prefix(network: nn.Module, prompts: Sequence[Sequence[int]]) -> tuple[int, list[list[Any]] | None]:
    """How many tokens all prompts begin with, and a cache of them for each; (0, None) where that is not worth it.

    Only plain key-value caches are shared: mlx-lm joins those to a batch without changing them.
    """
    shared = shared_length(prompts, SHARED_TOKENS)
    cache = make_prompt_cache(network)
    if len(prompts) < 2 or not shared or not all(type(one) is KVCache for one in cache):
        return 0, None
    network(mx.array([list(prompts[0][:shared])]), cache=cache)
    mx.eval([one.state for one in cache])
    return shared, [cache] * len(prompts)


def _sampler(temperature: float, seed: int) -> Callable[[mx.array], mx.array]:
    """Draws with a key of its own, since mlx-lm's sampler uses MLX's global random state."""
    key = mx.random.key(seed)

    def draw(log_probabilities: mx.array) -> mx.array:
        nonlocal key
        key, now = mx.random.split(key)
        return mx.random.categorical(log_probabilities / temperature, key=now)

    return draw


def decode(model: LanguageModel, answer: Sequence[int]) -> str:
    """Text of an answer without special tokens."""
    return str(model.tokenizer.decode(list(answer), skip_special_tokens=True))
