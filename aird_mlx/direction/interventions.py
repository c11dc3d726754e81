"""Logits after prompts, plain or with directions ablated or added: in memory, through taps, and only to measure.

Candidates ride in the batch, and adding at layer l runs only the blocks from l on.
Source: Arditi et al. 2024, arXiv:2406.11717, section 2.4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn

from aird_mlx.activations import Walk, batch_sequences, check_finite, run_head, take_positions
from aird_mlx.direction.scores import refusal_log_odds
from aird_mlx.model import ChatModel

# Tokens of one forward pass, all candidates together: enough to fill the device, few enough to stay in its caches.
RIDING_TOKENS = 8192


def last_logits(model: ChatModel, prompts: Sequence[Sequence[int]]) -> mx.array:
    """Logits ``[prompt, vocab]`` of the plain model after each prompt."""
    return logits_from(Walk(model, batch_sequences(prompts)))[0]


def last_refusal_log_odds(
    model: ChatModel, prompts: Sequence[Sequence[int]], tokens: Sequence[int], ablate: mx.array | None = None
) -> mx.array:
    """Refusal log-odds ``[prompt]`` after each prompt; ``ablate`` ``[hidden]`` is projected out everywhere."""
    unit = None if ablate is None else (ablate / mx.linalg.norm(ablate))[None]
    return refusal_log_odds(logits_from(Walk(model, batch_sequences(prompts)), ablate=unit)[0], tokens)


def logits_from(walk: Walk, *, ablate: mx.array | None = None, add: mx.array | None = None) -> mx.array:
    """Logits after each prompt of ``walk``, run on from where it stands; the walk itself stays there.

    Args:
        walk: read only; to ablate everywhere it stands at layer 0.
        ablate: ``[candidate, hidden]`` unit directions, each projected out of the hidden states here and of every
            output of a residual writer from here on.
        add: ``[candidate, hidden]`` vectors, each added to every token here.

    Returns:
        ``[candidate, prompt, vocab]``, prompts in the order they were given; one candidate, the plain model, without
        ``ablate`` and ``add``.

    Raises:
        ModelError: a block gives values that are not finite.
    """
    riders = ablate if add is None else add
    count = 1 if riders is None else riders.shape[0]
    rows: dict[int, mx.array] = {}
    for index, batch in enumerate(walk.batches):
        at_once = max(1, RIDING_TOKENS // batch.ids.size)
        parts = [
            _ride(
                walk,
                index,
                *(None if vectors is None else vectors[start : start + at_once] for vectors in (ablate, add)),
            )
            for start in range(0, count, at_once)
        ]
        logits = mx.concatenate(parts)
        for row, given in enumerate(batch.order):
            rows[given] = logits[:, row]
    return mx.stack([rows[given] for given in range(len(rows))], axis=1)


def _ride(walk: Walk, index: int, ablate: mx.array | None, add: mx.array | None) -> mx.array:
    """`logits_from` for one batch: ``[candidate, row, vocab]``, all candidates in one forward pass."""
    model, lengths, hidden = walk.model, walk.batches[index].lengths, walk.hidden[index]
    riders = ablate if add is None else add
    count = 1 if riders is None else riders.shape[0]
    hidden = mx.tile(hidden, (count, 1, 1))
    if add is not None:
        hidden = hidden + mx.repeat(add, len(lengths), axis=0)[:, None].astype(hidden.dtype)
    taps: dict[str, Callable[[nn.Module, mx.array], mx.array]] = {}
    if ablate is not None:
        directions = mx.repeat(ablate, len(lengths), axis=0)[:, None]
        hidden = _project_out(hidden, directions)
        taps = dict.fromkeys(model.architecture.writers, _project_output(directions))
    for block in range(walk.layer, len(model.blocks)):
        with model.linear_taps(block, taps):
            hidden = walk.run_block(index, hidden, block)
        check_finite(hidden, block)
    logits = run_head(model, take_positions(hidden, lengths * count, [-1]))[:, 0]
    mx.eval(logits)
    return logits.reshape(count, len(lengths), -1)


def _project_out(hidden: mx.array, directions: mx.array) -> mx.array:
    """``hidden - (hidden . r) r``, ``[row, token, hidden]``, with one unit direction ``[row, 1, hidden]`` per row."""
    values = hidden.astype(mx.float32)
    along = (values * directions).sum(axis=-1, keepdims=True)
    return (values - along * directions).astype(hidden.dtype)


def _project_output(directions: mx.array) -> Callable[[nn.Module, mx.array], mx.array]:
    def project(linear: nn.Module, value: mx.array) -> mx.array:
        return _project_out(linear(value), directions)

    return project
