"""Answers to many prompts at once in one context of llama.cpp: a group of prompts is read, then its answers grow.

Knows tokens and a context to decode them in. Source: ``examples/batched`` of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from aird_mlx.gguf_export.context import Context

Chooser = Callable[[np.ndarray], list[int]]


def make_chooser(temperature: float, seed: int) -> Chooser:
    """From logits ``[row, vocab]`` to a token per row: the likeliest, or drawn (by the Gumbel-max rule)."""
    random = np.random.default_rng(seed)

    def choose(logits: np.ndarray) -> list[int]:
        if temperature:
            logits = logits / temperature + random.gumbel(size=logits.shape)
        return [int(token) for token in logits.argmax(axis=-1)]

    return choose


def continue_prompts(
    context: Context,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: Collection[int],
    *,
    parallel: int,
    n_batch: int,
    choose: Chooser,
    progress: Callable[[int, int], None],
) -> list[list[int]]:
    """New tokens of every prompt, ``parallel`` prompts at a time, at most ``n_batch`` tokens a call.

    Args:
        context: opened here.
        prompts: token ids; at least one prompt, none empty.
        max_new_tokens: at least one.
        stop_ids: an answer ends before any of these.
        parallel, n_batch: sequences, and tokens decoded in one call; the first is at most the second.
        choose: a token for each row of logits.
        progress: called with (prompts done, prompts).

    Raises:
        ParityError: llama.cpp fails.
    """
    longest = max(len(prompt) for prompt in prompts) + max_new_tokens
    context.open(min(parallel, len(prompts)), longest)
    answers: list[list[int]] = [[] for _ in prompts]
    # neighbours in length share a group, so that little of a group waits for its longest prompt
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    for start in range(0, len(order), parallel):
        group = order[start : start + parallel]
        found = _continue_group(context, [prompts[index] for index in group], max_new_tokens, stop_ids, n_batch, choose)
        for index, answer in zip(group, found, strict=True):
            answers[index] = answer
        progress(start + len(group), len(order))
    return answers


def _continue_group(
    context: Context,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: Collection[int],
    n_batch: int,
    choose: Chooser,
) -> list[list[int]]:
    """Prefill all prompts of a group, then decode one token of each unfinished one per step."""
    context.clear()
    tokens = [
        (int(token), position, slot, position == len(prompt) - 1)
        for slot, prompt in enumerate(prompts)
        for position, token in enumerate(prompt)
    ]
    chosen: list[int] = []
    for start in range(0, len(tokens), n_batch):
        chosen.extend(choose(context.decode(tokens[start : start + n_batch])))
    answers: list[list[int]] = [[] for _ in prompts]
    active = list(range(len(prompts)))
    for step in range(max_new_tokens):
        remaining, batch = [], []
        for slot, token in zip(active, chosen, strict=True):
            if token in stop_ids:
                continue
            answers[slot].append(token)
            remaining.append(slot)
            batch.append((token, len(prompts[slot]) + step, slot, True))
        if not remaining or step == max_new_tokens - 1:
            break
        active = remaining
        chosen = choose(context.decode(batch))
    return answers
