"""Drop whole blocks: those whose output is nearest to their input do least.

A model with fewer blocks is smaller and faster as it is, everywhere; no mask has to be kept. It is another model than
the dense one block by block, so what repairs blocks towards the dense model's cannot be used on it.

Source: Men et al. 2024 (ShortGPT, arXiv:2403.03853), block influence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx

from aird_mlx.activations import TokenBatch, Walk
from aird_mlx.errors import PromptError, UsageError
from aird_mlx.model import ChatModel
from aird_mlx.pruning.fewer_blocks import block_traits, check_described, describe_fewer
from aird_mlx.report import PruningReport


def cosine_sum(before: mx.array, after: mx.array, counted: mx.array) -> mx.array:
    """Sum over counted tokens of the cosine between a block's input and its output.

    Args:
        before, after: ``[batch, token, hidden]``, any floating type.
        counted: ``[batch, token]`` float32.

    Returns:
        A float32 scalar.

    >>> cosine_sum(mx.array([[[1.0, 0.0]]]), mx.array([[[1.0, 1.0]]]), mx.ones((1, 1))).round(3).item()
    0.7070000171661377
    """
    one, other = before.astype(mx.float32), after.astype(mx.float32)
    lengths = mx.linalg.norm(one, axis=-1) * mx.linalg.norm(other, axis=-1)
    return (counted * (one * other).sum(axis=-1) / mx.maximum(lengths, 1e-12)).sum()


def measure_influence(
    model: ChatModel,
    calibration: Sequence[TokenBatch],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[float]:
    """Block influence, ``1 - mean cosine(input, output)`` over the counted tokens, of every block."""
    walk = Walk(model, calibration)
    tokens = sum(batch.counted.sum().item() for batch in walk.batches)
    influence = []
    while not walk.is_done:
        before = list(walk.hidden)
        walk.advance()
        sums = [
            cosine_sum(one, other, batch.counted).item()
            for one, other, batch in zip(before, walk.hidden, walk.batches, strict=True)
        ]
        influence.append(1.0 - sum(sums) / max(tokens, 1.0))
        progress(walk.layer, len(model.blocks))
    return influence


def drop_blocks(
    model: ChatModel,
    calibration: Sequence[TokenBatch],
    sparsity: float,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PruningReport:
    """Drop the blocks of least influence, and say so in the model's config; the model is for `save` afterwards.

    Args:
        model: changed in place: its list of blocks, and in the config every figure that is one per block.
        calibration: token batches.
        sparsity: fraction of the blocks, rounded down; at least one is dropped and one stays.

    Raises:
        UsageError: a fraction that drops no block, or a family whose config cannot say which are left.
        PromptError: no calibration.
    """
    count = len(model.blocks)
    dropped = int(count * sparsity + 1e-9)
    if not 0 < dropped < count:
        raise UsageError(
            f"prune: sparsity {sparsity:g} of {count} blocks is {dropped} blocks; at least one is needed. Use for "
            f"example --sparsity {1 / count + 0.005:.2f}."
        )
    if not calibration:
        raise PromptError("calibration: 0 tokens; method blocks needs some. Give texts or dialogues.")
    influence = measure_influence(model, calibration, progress)
    order = sorted(range(count), key=lambda block: (influence[block], block))
    gone = sorted(order[:dropped])
    kept = [block for block in range(count) if block not in gone]
    traits = block_traits(model)
    model.keep_blocks(kept)
    describe_fewer(model.config, count, kept)
    check_described(model, kept, traits)
    notes = [
        f"blocks {', '.join(map(str, gone))} of {count} were dropped: what remains is that much smaller and faster, "
        "but it is another model than the dense one, and `repair` cannot mend it block by block"
    ]
    return PruningReport(
        method="blocks",
        pattern="unstructured",
        scope="row",
        allocation="uniform",
        asked=sparsity,
        sparsity=0.0,
        tensors=[],
        notes=notes,
        dropped=gone,
        influence=influence,
    )
