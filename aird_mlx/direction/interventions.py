"""Logits after prompts, plain or with directions ablated or added: in memory, through taps, and only to measure.

Candidates ride in the batch, and adding at layer l runs only the blocks from l on.
Source: Arditi et al. 2024, arXiv:2406.11717, section 2.4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn

from aird_mlx.activations import TokenBatch, Walk, batch_sequences, run_head, take_positions
from aird_mlx.direction.scores import refusal_log_odds
from aird_mlx.model import ChatModel


def last_logits(model: ChatModel, prompts: Sequence[Sequence[int]]) -> mx.array:
    """Logits ``[prompt, vocab]`` of the plain model after each prompt."""
    return logits_after(model, batch_sequences(prompts), None)[0]


def last_refusal_log_odds(
    model: ChatModel, prompts: Sequence[Sequence[int]], tokens: Sequence[int], ablate: mx.array | None = None
) -> mx.array:
    """Refusal log-odds ``[prompt]`` after each prompt; ``ablate`` ``[hidden]`` is projected out everywhere."""
    unit = None if ablate is None else (ablate / mx.linalg.norm(ablate))[None]
    return refusal_log_odds(logits_after(model, batch_sequences(prompts), unit)[0], tokens)


def logits_after(model: ChatModel, batches: Sequence[TokenBatch], ablate: mx.array | None) -> mx.array:
    """Logits ``[candidate, prompt, vocab]`` after each prompt, with each row of ``ablate`` projected out everywhere.

    Without ``ablate`` there is one candidate: the plain model. Prompts come back in the order they were given.
    """
    count = 1 if ablate is None else ablate.shape[0]
    rows: dict[int, mx.array] = {}
    for batch in batches:
        walk = Walk(model, [batch])
        rode = len(batch.lengths)
        hidden = mx.concatenate([walk.hidden[0]] * count)
        directions = None if ablate is None else mx.repeat(ablate, rode, axis=0)[:, None]
        hidden = hidden if directions is None else _project_out(hidden, directions)
        while not walk.is_done:
            taps = {} if directions is None else dict.fromkeys(model.architecture.writers, _project_output(directions))
            with model.linear_taps(walk.layer, taps):
                hidden = walk.run_block(0, hidden)
            mx.eval(hidden)
            walk.layer += 1
        last = take_positions(hidden, batch.lengths * count, [-1])
        logits = run_head(model, last)[:, 0].reshape(count, rode, -1)
        mx.eval(logits)
        for row, index in enumerate(batch.order):
            rows[index] = logits[:, row]
    return mx.stack([rows[index] for index in range(len(rows))], axis=1)


def logits_with_added(walk: Walk, vectors: mx.array) -> mx.array:
    """Logits ``[candidate, prompt, vocab]`` with each vector added to every token at the walk's layer."""
    count = vectors.shape[0]
    rows: dict[int, mx.array] = {}
    for index, batch in enumerate(walk.batches):
        base = walk.hidden[index]
        rode = len(batch.lengths)
        hidden = mx.concatenate([base] * count)
        hidden = hidden + mx.repeat(vectors, rode, axis=0)[:, None].astype(base.dtype)
        start = walk.layer
        try:
            while not walk.is_done:
                hidden = walk.run_block(index, hidden)
                mx.eval(hidden)
                walk.layer += 1
        finally:
            walk.layer = start
        last = take_positions(hidden, batch.lengths * count, [-1])
        logits = run_head(walk.model, last)[:, 0].reshape(count, rode, -1)
        mx.eval(logits)
        for row, given in enumerate(batch.order):
            rows[given] = logits[:, row]
    return mx.stack([rows[index] for index in range(len(rows))], axis=1)


def _project_out(hidden: mx.array, directions: mx.array) -> mx.array:
    """``hidden - (hidden . r) r``, ``[row, token, hidden]``, with one unit direction ``[row, 1, hidden]`` per row."""
    values = hidden.astype(mx.float32)
    along = (values * directions).sum(axis=-1, keepdims=True)
    return (values - along * directions).astype(hidden.dtype)


def _project_output(directions: mx.array) -> Callable[[nn.Module, mx.array], mx.array]:
    def project(linear: nn.Module, value: mx.array) -> mx.array:
        return _project_out(linear(value), directions)

    return project
