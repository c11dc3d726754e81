"""What pruning has to know of the inputs of a block's linears, summed over the calibration tokens of a walk."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from aird_mlx.activations import Walk, flatten_counted


def input_squares(walk: Walk, names: Sequence[str]) -> dict[str, mx.array]:
    """Per linear of the current block the sum of x^2 per input feature, ``[in]`` float32, over the counted tokens."""
    totals: dict[str, mx.array] = {}
    for index, batch in enumerate(walk.batches):
        for name, value in walk.inputs_of(index, names).items():
            squares = mx.square(flatten_counted(value, batch.counted)).sum(axis=0)
            totals[name] = totals[name] + squares if name in totals else squares
        mx.eval(totals)
    return totals


def second_moments(walk: Walk, names: Sequence[str]) -> dict[str, mx.array]:
    """Per linear of the current block the mean of x x^T, ``[in, in]`` float32, over the counted tokens.

    Linears that read the same activations share one array.
    """
    groups = [group for group in walk.model.architecture.linears if any(name in names for name in group)]
    totals: dict[str, mx.array] = {}
    count = 0.0
    for index, batch in enumerate(walk.batches):
        count += batch.counted.sum().item()
        inputs = walk.inputs_of(index, [group[0] for group in groups])
        for name, value in inputs.items():
            rows = flatten_counted(value, batch.counted)
            totals[name] = totals[name] + rows.T @ rows if name in totals else rows.T @ rows
        mx.eval(totals)
    means = {group[0]: totals[group[0]] / max(count, 1.0) for group in groups}
    return {name: means[group[0]] for group in groups for name in group if name in names}
