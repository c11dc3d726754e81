"""Block reconstruction: all surviving weights of one block chosen together, towards the dense block's output.

Linear by linear, a refit cannot make one linear compensate for another, nor for what the residual stream has
already lost. Here the whole block is run, on the hidden states it really gets, and its surviving weights are moved by
gradients until its output meets the dense model's. Memory is one block in float32, its two moments, and either what a
backward pass holds or one linear's gradient and step.

Source: block-wise reconstruction of Li et al. 2021 (BRECQ, arXiv:2102.05426), which rounds weights with it; here it
chooses weights inside a pruning mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import mlx.core as mx

from aird_mlx.activations import Walk, spread_rows
from aird_mlx.repair.descent import TOKENS_CHECKED, descend, schedule_rows

# Steps are relative to each linear's root mean square weight, so that one rate serves every model and layer.
LEARNING_RATE = 0.03
TOKENS_PER_STEP = 512  # with twice as many, distillation from there ends no nearer to the dense model
# Times the median length of a hidden state; only the outliers of large models are longer.
LONGEST = 4.0


def reconstruction_error(
    found: mx.array, wanted: mx.array, weight: mx.array, directions: mx.array | None = None, beta: float = 0.0
) -> mx.array:
    """Weighted sum over tokens of the squared error of a block's outputs.

    Args:
        found, wanted: ``[batch, token, hidden]``, any floating type.
        weight: ``[batch, token]`` float32, see `token_weights`.
        directions: R, ``[k, hidden]`` float32 orthonormal; needed with beta.
        beta: extra weight of the error along R.

    Returns:
        A float32 scalar.

    >>> reconstruction_error(mx.array([[[3.0, 4.0]]]), mx.array([[[3.0, 1.0]]]), mx.full((1, 1), 0.5)).item()
    4.5
    """
    error = found.astype(mx.float32) - wanted.astype(mx.float32)
    squared = mx.square(error).sum(axis=-1)
    if directions is not None and beta:
        squared = squared + beta * mx.square(error @ directions.T).sum(axis=-1)
    return (weight * squared).sum()


def token_weights(wanted: Sequence[mx.array], counted: Sequence[mx.array]) -> list[mx.array]:
    """What each token's squared error weighs: the same for all, but for the few with huge hidden states.

    In large models the first token's hidden state is a thousand times as long as the others' and would be all that
    counts. Beyond `LONGEST` times the median length, a token's error weighs as if it had that length.

    Args:
        wanted: the dense block's outputs, ``[batch, token, hidden]`` each.
        counted: ``[batch, token]`` float32 each, 1 where the token counts and 0 elsewhere.

    Returns:
        ``[batch, token]`` float32 each: 1 / (median squared length), less for longer tokens, 0 for those not counted.

    >>> [w.tolist() for w in token_weights([mx.array([[[1.0], [10.0], [1.0], [9.0]]])], [mx.array([[1.0, 1, 1, 0]])])]
    [[[1.0, 0.1599999964237213, 1.0, 0.0]]]
    """
    if not wanted:
        return []
    squares = [mx.square(array.astype(mx.float32)).sum(axis=-1) for array in wanted]
    seen = mx.concatenate(
        [mx.where(mask > 0, square, mx.inf).flatten() for square, mask in zip(squares, counted, strict=True)]
    )
    tokens = max(sum(mask.sum().item() for mask in counted), 1.0)
    median = mx.maximum(mx.sort(seen)[int(tokens) // 2], 1e-12)
    limit = LONGEST**2 * median
    return [
        mask * mx.minimum(1.0, limit / mx.maximum(square, 1e-12)) / median
        for square, mask in zip(squares, counted, strict=True)
    ]


def reconstruct_block(
    walk: Walk,
    wanted: Sequence[mx.array],
    *,
    steps: int,
    directions: mx.array | None = None,
    beta: float = 0.0,
    learning_rate: float = LEARNING_RATE,
    tokens_per_step: int = TOKENS_PER_STEP,
    seed: int = 0,
) -> dict[str, mx.array]:
    """Choose the surviving weights of the walk's current block again, so that its outputs meet ``wanted``.

    `descend` on all linears of the block at once, on a part of the sequences at each step. The model is left as found.

    Args:
        walk: the compressed model at the input of the block.
        wanted: the dense block's outputs, one ``[batch, token, hidden]`` array per batch of ``walk``.
        steps: how many.
        directions, beta: see `reconstruction_error`.
        learning_rate: first step size, relative to each linear's root mean square.
        tokens_per_step: sequences are added to a step up to this many tokens, padding included.
        seed: which sequences meet in a step.

    Returns:
        The new weight ``[out, in]`` float32 of every linear of the block, by name; nearer to ``wanted`` than the
        weights found, or these.
    """
    model = walk.model
    linears = {name: model.linear(walk.layer, name) for name in walk.layout.linear_names}
    weights = token_weights(wanted, [batch.counted for batch in walk.batches])

    def error(index: int, rows: Sequence[int]) -> mx.array:
        chosen = mx.array(rows)
        outputs = walk.run_block(index, walk.hidden[index][chosen], rows=chosen)
        return reconstruction_error(outputs, wanted[index][chosen], weights[index][chosen], directions, beta)

    with model.differentiable():
        return descend(
            linears,
            error,
            schedule_rows(walk.batches, steps, tokens_per_step, seed),
            learning_rate=learning_rate,
            checked=spread_rows(walk.batches, TOKENS_CHECKED),
            stored={
                name: model.stored[path] for name in linears if (path := model.path(walk.layer, name)) in model.stored
            },
            put_back=None if model.stream is None else partial(model.stream.put_back, walk.layer),
        )
