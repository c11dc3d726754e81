"""The activations of a model: batches of sequences, the one walk over the blocks, and what linears read on it.

This package knows nothing about what the activations are for.
"""

from aird_mlx.activations.batches import (
    TokenBatch,
    batch_sequences,
    flatten_counted,
    shared_length,
    spread_rows,
    take_positions,
    thin_batches,
)
from aird_mlx.activations.inputs import Routed
from aird_mlx.activations.lanes import lane_count, side_by_side
from aird_mlx.activations.walk import Walk, check_finite, run_head

__all__ = [
    "Routed",
    "TokenBatch",
    "Walk",
    "batch_sequences",
    "check_finite",
    "flatten_counted",
    "lane_count",
    "run_head",
    "shared_length",
    "side_by_side",
    "spread_rows",
    "take_positions",
    "thin_batches",
]
