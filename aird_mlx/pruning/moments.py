"""What pruning has to know of the inputs of a block's linears, summed over the calibration tokens of a walk."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx

from aird_mlx.activations import Walk, flatten_counted


def input_squares(walk: Walk, names: Sequence[str]) -> dict[str, mx.array]:
    """Per linear of the current block the sum of x^2 per input feature, ``[in]`` float32, over the counted tokens."""
    return _for_each(walk, names, _group_sums(walk, names, lambda rows: mx.square(rows).sum(axis=0)))


def second_moments(walk: Walk, names: Sequence[str]) -> dict[str, mx.array]:
    """Per linear of the current block the mean of x x^T, ``[in, in]`` float32, over the counted tokens.

    Linears that read the same activations share one array.
    """
    sums = _group_sums(walk, names, lambda rows: rows.T @ rows)
    count = sum(batch.counted.sum().item() for batch in walk.batches)
    return _for_each(walk, names, {first: total / max(count, 1.0) for first, total in sums.items()})


def _group_sums(walk: Walk, names: Sequence[str], statistic: Callable[[mx.array], mx.array]) -> dict[str, mx.array]:
    """By the first linear of each group that shares its input, the sum over batches of a statistic of that input."""
    firsts = [group[0] for group in walk.model.architecture.linears if any(name in names for name in group)]
    sums: dict[str, mx.array] = {}
    for index, batch in enumerate(walk.batches):
        for first, value in walk.inputs_of(index, firsts).items():
            own = statistic(flatten_counted(value, batch.counted))
            sums[first] = sums[first] + own if first in sums else own
        mx.eval(sums)
    return sums


def _for_each(walk: Walk, names: Sequence[str], by_group: dict[str, mx.array]) -> dict[str, mx.array]:
    groups = walk.model.architecture.linears
    return {name: by_group[group[0]] for group in groups for name in group if name in names}
