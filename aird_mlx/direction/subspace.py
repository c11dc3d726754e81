"""More than one refusal direction: what else, beside the difference of means, sets harmful prompts apart.

Source: the directions are the leading components of harmful states minus the harmless mean, as in Wollschläger et al.
2025 (arXiv:2502.17420), who find refusal in cones of several dimensions; here they serve repair.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from aird_mlx.activations import Walk, batch_sequences, take_positions
from aird_mlx.direction.selection import Direction
from aird_mlx.model import ChatModel


def refusal_subspace(
    model: ChatModel,
    direction: Direction,
    harmful: Sequence[Sequence[int]],
    harmless: Sequence[Sequence[int]],
    rank: int,
) -> mx.array:
    """Orthonormal refusal directions at the layer and position of ``direction``, which is the first.

    Args:
        model: read only.
        direction: the refusal direction of ``model``.
        harmful, harmless: token ids of rendered prompts; both are needed.
        rank: how many directions; no more than there are harmful prompts are found.

    Returns:
        ``[rank, hidden]`` float32, or fewer rows where the states span less.
    """
    states = [_states(model, direction, prompts) for prompts in (harmful, harmless)]
    apart = states[0] - states[1].mean(axis=0)
    least = 1e-4 * mx.linalg.norm(apart)  # what is left of less is rounding
    first = direction.vector[None].astype(mx.float32)
    apart = apart - (apart @ first.T) @ first
    _, sizes, components = mx.linalg.svd(apart, stream=mx.cpu)
    found = int((sizes > mx.maximum(least, 1e-12)).sum().item())
    return mx.concatenate([first, components[: min(rank - 1, found)]])


def _states(model: ChatModel, direction: Direction, prompts: Sequence[Sequence[int]]) -> mx.array:
    """``[prompt, hidden]`` float32: each prompt's state at the direction's layer and position."""
    walk = Walk(model, batch_sequences(prompts))
    walk.move_to(direction.layer)
    return mx.concatenate(
        [
            take_positions(hidden, batch.lengths, [direction.position])[:, 0].astype(mx.float32)
            for hidden, batch in zip(walk.hidden, walk.batches, strict=True)
        ]
    )
