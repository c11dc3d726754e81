"""Repair a model that does not fit, block by block, and write each block as it is done.

The same walk and kernels as `solve_patch`: the dense and the compressed model stand side by side at one block, which
gets its repaired weights, is written and let go of. No patch is kept, since it is as large as the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import mlx.core as mx
import numpy as np

from aird_mlx.activations import TokenBatch
from aird_mlx.errors import UsageError
from aird_mlx.model import ChatModel, ShardFolder
from aird_mlx.patch import FoldResult
from aird_mlx.repair.plan import RULES, RepairPlan
from aird_mlx.repair.solve import solve_blocks

# Rules that need no more than a block of each model at a time.
STREAMED_RULES = tuple(name for name, rule in RULES.items() if not rule.all_at_once)


def repair_blocks(
    model: ChatModel,
    dense: ChatModel,
    calibration: Sequence[TokenBatch],
    directions: mx.array,
    plan: RepairPlan,
    shards: ShardFolder,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> FoldResult:
    """Repair every block of ``model`` and write it; what an interrupted call has written is not done again.

    Args:
        model: the compressed model, streamed; it is the repaired one afterwards.
        dense: the model it was made from.
        calibration, directions: see `solve_patch`.
        plan: of a rule of `STREAMED_RULES`, strength 1.
        shards: the folder of ``model``; not finished here.
        progress: called with (blocks done, blocks).

    Returns:
        Sparsity before and after and what is lost of it, the same as `fold` counts.

    Raises:
        UsageError: another rule or strength.
    """
    if plan.rule not in STREAMED_RULES or plan.strength != 1:
        raise UsageError(
            f"repair: rule {plan.rule} at strength {plan.strength:g} block by block; one of "
            f"{', '.join(STREAMED_RULES)} at strength 1 is needed, since {plan.rule} is chosen on the whole model. "
            "Choose another rule, or run without --streaming."
        )
    used = directions.reshape(-1, directions.shape[-1])[: plan.rank]
    counts: list[tuple[int, int, int]] = []  # of each block: zeros before, zeros after, zeros lost
    pruned: dict[str, np.ndarray] = {}  # of the block the walk stands at

    def take(block: int) -> bool:
        """Whether the block is written already; the model has it then."""
        record = shards.take(block)
        if record is None:
            pruned.update(_zeros(model, block))
        else:
            counts.append(record)
        return record is not None

    def write(block: int) -> None:
        if not shards.has(block):
            zeros = _zeros(model, block)
            lost = {name: pruned[name] & ~zeros[name] for name in zeros}
            counts.append((_count(pruned), _count(zeros), _count(lost)))
            shards.write(block, counts[block])
        pruned.clear()
        progress(block + 1, len(model.blocks))

    for block, _ in solve_blocks(model, dense, calibration, used, plan, is_repaired=take):
        write(block)
    for block in range(len(counts), len(model.blocks)):
        take(block)
        write(block)
        model.release(block)
    return FoldResult(*(sum(column) / model.prunable_weights for column in zip(*counts, strict=True)))


def _zeros(model: ChatModel, block: int) -> dict[str, np.ndarray]:
    """By linear, where its weight is zero, a bit each."""
    return {
        name: np.packbits(np.array(model.linear(block, name).weight == 0)) for name in model.layout(block).linear_names
    }


def _count(places: Mapping[str, np.ndarray]) -> int:
    return sum(int(np.unpackbits(one).sum()) for one in places.values())
