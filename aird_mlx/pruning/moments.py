"""What pruning has to know of the inputs of a block's linears, summed over the calibration tokens of a walk.

Of fused experts everything is per expert, over the tokens that are routed to it and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from aird_mlx.activations import Walk, flatten_counted

# An expert that sees fewer calibration tokens is pruned by the size of its weights alone.
LEAST_TOKENS = 32


@dataclass(frozen=True)
class InputStatistics:
    """A statistic of the inputs of linears.

    Attributes:
        values: by linear; linears that read the same activations share one array.
        tokens: by fused linear, how many counted tokens each expert saw, ``[expert]`` float32.
    """

    values: Mapping[str, mx.array]
    tokens: Mapping[str, mx.array] = field(default_factory=dict)

    def seen(self, name: str) -> mx.array | None:
        """Which experts of a fused linear saw enough tokens, ``[expert]`` bool; None for other linears."""
        return self.tokens[name] >= LEAST_TOKENS if name in self.tokens else None


def input_squares(walk: Walk, names: Sequence[str]) -> InputStatistics:
    """Per linear of the current block the sum of x^2 per input feature over the counted tokens.

    Returns:
        ``[in]`` float32, of fused experts ``[expert, in]``.
    """
    return _over_batches(walk, names, lambda rows: mx.square(rows).sum(axis=0))


def second_moments(walk: Walk, names: Sequence[str]) -> InputStatistics:
    """Per linear of the current block the mean of x x^T over the counted tokens.

    Returns:
        ``[in, in]`` float32, of fused experts ``[expert, in, in]``.
    """
    sums = _over_batches(walk, names, lambda rows: rows.T @ rows)
    count = max(sum(batch.counted.sum().item() for batch in walk.batches), 1.0)
    means: dict[str, mx.array] = {}
    for group in _groups(walk, names):
        seen = sums.tokens.get(group[0])
        mean = sums.values[group[0]] / (count if seen is None else mx.maximum(seen, 1.0)[:, None, None])
        means |= dict.fromkeys(group, mean)
    return InputStatistics(means, sums.tokens)


def _over_batches(walk: Walk, names: Sequence[str], statistic: Callable[[mx.array], mx.array]) -> InputStatistics:
    """The sum over batches of a statistic of rows ``[row, in]``, taken once per group that shares its input."""
    groups = {group[0]: group for group in _groups(walk, names)}
    fused = [first for first in groups if walk.layout.is_expert(first)]
    plain = [first for first in groups if first not in fused]
    sums: dict[str, mx.array] = {}
    tokens: dict[str, mx.array] = {}
    for index, batch in enumerate(walk.batches):
        inputs, routed = walk.all_inputs_of(index, plain, fused)
        found = {first: statistic(flatten_counted(values, batch.counted)) for first, values in inputs.items()}
        for first, one in routed.items():
            rows = one.by_expert(batch.counted, walk.model.linear(walk.layer, first).weight.shape[0])
            found[first] = mx.stack([statistic(one.rows(own)) for own in rows])
            seen = mx.array([float(len(own)) for own in rows])
            tokens[first] = tokens[first] + seen if first in tokens else seen
        sums = {first: sums[first] + own if first in sums else own for first, own in found.items()}
        mx.eval(sums, tokens)
    counts = {name: tokens[first] for first in tokens for name in groups[first]}
    return InputStatistics({name: sums[first] for first in sums for name in groups[first]}, counts)


def _groups(walk: Walk, names: Sequence[str]) -> list[tuple[str, ...]]:
    """The groups of the current block that any of ``names`` is in."""
    return [group for group in walk.layout.groups if any(name in names for name in group)]
