"""Distillation: the surviving weights of all blocks moved together, towards the dense model's next-token distribution.

What block reconstruction leaves over adds up from block to block; here the whole model is run, and its blocks make up
for one another. It starts best from reconstructed blocks: without them it fits its calibration and carries over less.
Memory is both models and, per pruned weight in float32, what it is, began as and was changed by, and two moments
(`needed_bytes`).

Source: Hinton et al. 2015 (arXiv:1503.02531); Kurtic et al. 2023 (arXiv:2310.06927) for sparse models, where states
and distributions are matched as well.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import mlx.core as mx
import numpy as np

from aird_mlx.activations import TokenBatch, Walk, run_head, spread_rows
from aird_mlx.direction import kl_divergence
from aird_mlx.model import ChatModel, usable_memory
from aird_mlx.repair.descent import TOKENS_CHECKED, descend, schedule_rows

LEARNING_RATE = 0.01
# With 512 tokens and half as many steps more it ends nearer to the dense model and refuses as much on average, but how
# many benign twins it refuses differs more between seeds.
TOKENS_PER_STEP = 1024
# Logits of a large vocabulary are the most a step holds, so each step compares the models at this many tokens only.
TOKENS_COMPARED = 512
# The token an answer opens from decides whether it refuses: one of dozens, it weighs as much as all the others.
OPENING_WEIGHT = 30.0


def needed_bytes(model: ChatModel) -> int:
    """Memory distillation takes beside activations: two models, and five float32 numbers per weight."""
    return 2 * model.size_bytes + 20 * model.prunable_weights


def fits_in_memory(model: ChatModel) -> bool:
    """Whether `distill` may be tried on this machine: on whole models, its needs within what a job may plan with."""
    return model.stream is None and needed_bytes(model) <= usable_memory()


def distill(
    walk: Walk,
    dense: Walk,
    blocks: Sequence[int],
    *,
    steps: int,
    learning_rate: float = LEARNING_RATE,
    tokens_per_step: int = TOKENS_PER_STEP,
    tokens_compared: int = TOKENS_COMPARED,
    opening_weight: float = OPENING_WEIGHT,
    seed: int = 0,
    start: Mapping[tuple[int, str], mx.array] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[tuple[int, str], mx.array]:
    """Choose the surviving weights of several blocks again, so that next-token distributions meet the dense model's.

    Minimizes the weighted mean of KL(dense || model) over counted tokens, by `descend`; a token weighs the same in
    whichever step it comes. The models are left as found.

    Args:
        walk: of the compressed model, at the input of its first block.
        dense: of the dense model over the same batches, past its last block.
        blocks: whose linears are moved.
        steps: how many.
        learning_rate, seed, start, progress: see `descend`.
        tokens_per_step: sequences are added to a step up to this many tokens, padding included.
        tokens_compared: of these, at most this many drawn tokens are compared in a step; those that answers open from
            always are.
        opening_weight: what these weigh, where others weigh 1.

    Returns:
        The new weight ``[out, in]`` float32 by (block, linear); on tokens drawn once, nearer to the dense model than
        the weights found, or else these.
    """
    model = walk.model
    linears = {
        (block, name): model.linear(block, name) for block in blocks for name in model.layout(block).linear_names
    }
    weights = [opening_weights(batch, opening_weight) for batch in walk.batches]
    average = sum(weight.sum() for weight in weights) / max(1, sum(np.count_nonzero(weight) for weight in weights))

    def error(index: int, rows: Sequence[int]) -> mx.array:
        chosen = mx.array(rows)
        hidden = walk.hidden[index][chosen]
        for block in range(len(model.blocks)):
            hidden = walk.run_block(index, hidden, block)
        weight = weights[index][list(rows)].reshape(-1)
        tokens = drawn_tokens(weight, tokens_compared, random.Random(f"{seed}:{index}:{rows}"))
        at, weighed = mx.array(tokens), mx.array(weight[tokens])
        found, wanted = (
            run_head(one.model, states.reshape(1, -1, states.shape[-1])[:, at])
            for one, states in ((walk, hidden), (dense, dense.hidden[index][chosen]))
        )
        return (weighed * kl_divergence(mx.stop_gradient(wanted), found)[0]).sum() / max(average * len(tokens), 1e-12)

    with model.differentiable():
        return descend(
            linears,
            error,
            schedule_rows(walk.batches, steps, tokens_per_step, seed),
            learning_rate=learning_rate,
            checked=spread_rows(walk.batches, TOKENS_CHECKED),
            stored={key: model.stored[path] for key in linears if (path := model.path(*key)) in model.stored},
            start=start,
            progress=progress,
        )


def opening_weights(batch: TokenBatch, opening_weight: float) -> np.ndarray:
    """``[batch, token]`` float32: 0 for tokens that do not count, ``opening_weight`` where an answer opens, else 1.

    >>> from aird_mlx.activations import batch_sequences
    >>> opening_weights(batch_sequences([[1, 2, 3], [4, 5]], first_answered=[2, 0])[0], 10.0).tolist()
    [[1.0, 1.0, 0.0], [1.0, 10.0, 1.0]]
    """
    weights = np.array(batch.counted)
    for row, token in enumerate(batch.opens):
        if token >= 0:
            weights[row, token] *= opening_weight
    return weights


def drawn_tokens(weight: np.ndarray, most: int, generator: random.Random) -> list[int]:
    """Indices of tokens with a weight: all that weigh more than 1, and of the others as many as ``most`` leaves.

    >>> drawn_tokens(np.array([0.0, 1.0, 10.0, 1.0]), 3, random.Random(0))
    [1, 2, 3]
    >>> 2 in drawn_tokens(np.array([0.0, 1.0, 10.0, 1.0]), 2, random.Random(0))
    True
    """
    always = np.flatnonzero(weight > 1).tolist()
    others = np.flatnonzero((weight > 0) & (weight <= 1)).tolist()
    room = max(0, most - len(always))
    return sorted(always + (others if len(others) <= room else generator.sample(others, room)))
