"""Second moments of a linear's inputs in the dense and in the compressed model, on the same tokens.

Where a norm stands between a writer and the stream, a token's output is divided by its length there; so are, here, the
inputs that gave it. Of fused experts the moments are per expert, over the tokens that both models route to it.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from aird_mlx.activations import Walk, flatten_counted
from aird_mlx.model import ChatModel, submodule

# An expert that both models route fewer tokens to has no least squares of its own.
LEAST_TOKENS = 16


def paired_moments(dense: Walk, compressed: Walk, name: str) -> tuple[mx.array, mx.array]:
    """Second moments of a linear's inputs over the counted tokens of both walks' current block.

    Returns:
        H = mean of x' x'^T and G = mean of x x'^T, each ``[in, in]`` float32; x dense, x' compressed.
    """
    is_normed = compressed.layout.part_of(name).norm is not None and name in compressed.layout.writers
    second, cross = mx.array(0.0), mx.array(0.0)
    tokens = 0.0
    for index, batch in enumerate(compressed.batches):
        rows = []
        for walk in (compressed, dense):
            values = walk.inputs_of(index, [name])[name]
            if is_normed:
                values = values.astype(mx.float32) / _length(walk.model.linear(walk.layer, name)(values))
            rows.append(flatten_counted(values, batch.counted))
        drifted, original = rows
        second = second + drifted.T @ drifted
        cross = cross + original.T @ drifted
        tokens += batch.counted.sum().item()
        mx.eval(second, cross)
    return second / max(tokens, 1.0), cross / max(tokens, 1.0)


def _length(outputs: mx.array) -> mx.array:
    """Root mean square of ``[batch, token, hidden]``, ``[batch, token, 1]``: what an RMS norm divides by."""
    return mx.sqrt(mx.square(outputs.astype(mx.float32)).mean(axis=-1, keepdims=True) + 1e-12)


def paired_expert_moments(dense: Walk, compressed: Walk, name: str) -> list[tuple[mx.array, mx.array] | None]:
    """`paired_moments` per expert of a fused linear; None for those with fewer than `LEAST_TOKENS` tokens in common."""
    experts = compressed.model.linear(compressed.layer, name).weight.shape[0]
    sums: list[tuple[mx.array, mx.array]] = [(mx.array(0.0), mx.array(0.0))] * experts
    counts = [0] * experts
    for index, batch in enumerate(compressed.batches):
        drifted, original = (walk.routed_inputs_of(index, [name])[name] for walk in (compressed, dense))
        all_experts = dense.model.linear(dense.layer, name).weight.shape[0]
        wanted_rows = original.by_expert(batch.counted, all_experts)
        kept = compressed.model.kept_experts.get(compressed.layer, range(experts))
        found = zip(drifted.by_expert(batch.counted, experts), [wanted_rows[one] for one in kept], strict=True)
        for expert, (own, wanted) in enumerate(found):
            _, first, second = np.intersect1d(own // drifted.chosen, wanted // original.chosen, return_indices=True)
            if len(first):
                seen, dense_seen = drifted.rows(own[first]), original.rows(wanted[second])
                second_sum, cross_sum = sums[expert]
                sums[expert] = second_sum + seen.T @ seen, cross_sum + dense_seen.T @ seen
                counts[expert] += len(first)
        mx.eval(sums)
    return [
        (second / count, cross / count) if count >= LEAST_TOKENS else None
        for (second, cross), count in zip(sums, counts, strict=True)
    ]


def before_norm(model: ChatModel, block: int, norm: str | None, directions: mx.array) -> mx.array:
    """The directions as the writer has to write them for a norm after it to give them to the stream.

    An RMS norm gives ``gamma * y / rms(y)``, so what the stream gets along r is ``(gamma * r) . y`` over the length.

    Args:
        directions: R, ``[k, hidden]`` float32 orthonormal.
        norm: the module between writer and stream; None: the directions themselves.

    Returns:
        ``[k, hidden]`` float32 orthonormal rows that span ``R diag(gamma)``.
    """
    if norm is None:
        return directions
    module = submodule(model.blocks[block], norm)
    size = 1024.0  # far above the norm's epsilon
    gamma = module(mx.full((1, directions.shape[1]), size))[0].astype(mx.float32)
    weighed = directions * gamma
    if weighed.shape[0] == 1:
        return weighed / mx.maximum(mx.linalg.norm(weighed), 1e-30)
    return mx.linalg.qr(weighed.T, stream=mx.cpu)[0].T
