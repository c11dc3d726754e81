"""Greedy answers to many prompts at once, by mlx-lm's continuous batching."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mlx_lm.generate import batch_generate

from aird_mlx.model import ChatModel

BATCH_SIZE = 64


def generate_answers(
    model: ChatModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 128,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[int]]:
    """Greedy continuations, without the end-of-turn token.

    Args:
        model: read only.
        prompts: token ids of rendered prompts.
        max_new_tokens: longer answers are cut.
        batch_size: how many are generated side by side.
        progress: called with (prompts done, prompts).

    Returns:
        Token ids per prompt, in the order given.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    # Prompts of like length share a batch, so that little of it is padding.
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        response = batch_generate(
            model.network,
            model.tokenizer,
            [list(prompts[index]) for index in chosen],
            max_tokens=max_new_tokens,
            return_token_ids=True,
            completion_batch_size=batch_size,
            prefill_batch_size=batch_size,
        )
        assert response.token_ids is not None
        for index, tokens in zip(chosen, response.token_ids, strict=True):
            answers[index] = list(tokens)
        progress(min(start + batch_size, len(order)), len(order))
    return answers


def decode(model: ChatModel, answer: Sequence[int]) -> str:
    """Text of an answer without special tokens."""
    return str(model.tokenizer.decode(list(answer), skip_special_tokens=True))
