"""Logits after prompts, plain or with directions ablated or added: in memory, through taps, and only to measure.

Candidates ride in the batch, adding at layer l runs only the blocks from l on, and what all prompts start with is
computed once per candidate.
Source: Arditi et al. 2024, arXiv:2406.11717, section 2.4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import mlx.core as mx
import mlx.nn as nn

from aird_mlx.activations import Walk, check_finite, run_head, side_by_side, take_positions
from aird_mlx.direction.scores import refusal_log_odds
from aird_mlx.direction.shared_start import SharedStart
from aird_mlx.model import ChatModel

# Tokens of one forward pass, all candidates together: enough to fill the device, few enough to stay in its caches.
RIDING_TOKENS = 8192


def last_logits(model: ChatModel, prompts: Sequence[Sequence[int]]) -> mx.array:
    """Logits ``[prompt, vocab]`` of the plain model after each prompt."""
    return logits_from(SharedStart(model, prompts))[0]


def last_refusal_log_odds(
    model: ChatModel, prompts: Sequence[Sequence[int]], tokens: Sequence[int], ablate: mx.array | None = None
) -> mx.array:
    """Refusal log-odds ``[prompt]`` after each prompt; ``ablate`` ``[hidden]`` is projected out everywhere."""
    unit = None if ablate is None else (ablate / mx.linalg.norm(ablate))[None]
    return refusal_log_odds(logits_from(SharedStart(model, prompts), ablate=unit)[0], tokens)


def logits_from(asked: SharedStart, *, ablate: mx.array | None = None, add: mx.array | None = None) -> mx.array:
    """Logits after each prompt, run on from where the prompts stand; they stay there.

    Args:
        asked: read only; to ablate everywhere it stands at layer 0.
        ablate: ``[candidate, hidden]`` unit directions, each projected out of the hidden states here and of everything
            that is added to them from here on.
        add: ``[candidate, hidden]`` vectors, each added to every token here.

    Returns:
        ``[candidate, prompt, vocab]``, prompts in the order they were given; one candidate, the plain model, without
        ``ablate`` and ``add``.

    Raises:
        ModelError: a block gives values that are not finite.
    """
    riders = ablate if add is None else add
    count = 1 if riders is None else riders.shape[0]
    at_once = max(1, RIDING_TOKENS // max(batch.ids.size for batch in asked.rest.batches))
    parts = [
        _ride(asked, *(None if one is None else one[first : first + at_once] for one in (ablate, add)))
        for first in range(0, count, at_once)
    ]
    return mx.concatenate(parts)


def _ride(asked: SharedStart, ablate: mx.array | None, add: mx.array | None) -> mx.array:
    """`logits_from` for candidates that ride together: the start for all of them, then batch beside batch."""
    model = asked.rest.model
    riders = ablate if add is None else add
    count = 1 if riders is None else riders.shape[0]
    if asked.start is not None:
        hidden, taps = _intervene(model, asked.start.hidden[0], count, ablate, add)
        for block in range(asked.layer, len(model.blocks)):
            with model.linear_taps(block, taps(block)):
                hidden = asked.run_start(block, hidden)
            check_finite(hidden, block)
    batches = asked.rest.batches
    logits = side_by_side([_ride_on(asked.rest, index, count, ablate, add) for index in range(len(batches))])
    rows = {
        given: of[:, row] for batch, of in zip(batches, logits, strict=True) for row, given in enumerate(batch.order)
    }
    return mx.stack([rows[given] for given in range(len(rows))], axis=1)


def _ride_on(walk: Walk, index: int, count: int, ablate: mx.array | None, add: mx.array | None) -> Iterator[mx.array]:
    """Batch ``index`` for ``count`` candidates: the outputs of its blocks, then logits ``[count, row, vocab]``."""
    model, batch = walk.model, walk.batches[index]
    hidden, taps = _intervene(model, walk.hidden[index], count, ablate, add)
    for block in range(walk.layer, len(model.blocks)):
        with model.linear_taps(block, taps(block)):
            hidden = walk.run_block(index, hidden, block)
        yield hidden
        check_finite(hidden, block)
    last = take_positions(hidden, batch.lengths * count, [-1])
    yield run_head(model, last)[:, 0].reshape(count, len(batch.lengths), -1)


def _intervene(
    model: ChatModel, hidden: mx.array, count: int, ablate: mx.array | None, add: mx.array | None
) -> tuple[mx.array, Callable[[int], dict[str, Callable[[nn.Module, mx.array], mx.array]]]]:
    """Hidden states, rows repeated for every candidate, intervened on; and by block the taps that go on doing so."""
    rows = hidden.shape[0]
    hidden = mx.tile(hidden, (count, 1, 1))
    if add is not None:
        hidden = hidden + mx.repeat(add, rows, axis=0)[:, None].astype(hidden.dtype)
    if ablate is None:
        return hidden, lambda block: {}
    directions = mx.repeat(ablate, rows, axis=0)[:, None]
    project = _project_output(directions)
    return _project_out(hidden, directions), lambda block: dict.fromkeys(model.layout(block).sources, project)


def _project_out(hidden: mx.array, directions: mx.array) -> mx.array:
    """``hidden - (hidden . r) r``, ``[row, token, hidden]``, with one unit direction ``[row, 1, hidden]`` per row."""
    values = hidden.astype(mx.float32)
    along = (values * directions).sum(axis=-1, keepdims=True)
    return (values - along * directions).astype(hidden.dtype)


def _project_output(directions: mx.array) -> Callable[[nn.Module, mx.array], mx.array]:
    def project(linear: nn.Module, value: mx.array) -> mx.array:
        output = linear(value)  # of experts with one more axis, or with rows and tokens in one
        rows = output.reshape(directions.shape[0], -1, output.shape[-1])
        return _project_out(rows, directions).reshape(output.shape)

    return project
