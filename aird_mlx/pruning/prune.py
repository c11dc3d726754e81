"""Walk the blocks and prune their linears in place: the driver around the masks.

Each block is scored with the inputs it gets from the blocks already pruned before it. Embeddings, norms, biases
and the output head are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx

from aird_mlx.activations import TokenBatch, Walk, flatten_counted
from aird_mlx.errors import UsageError
from aird_mlx.model import ChatModel
from aird_mlx.pruning.masks import lowest_mask, magnitude_scores, n_of_m_mask, parse_pattern, wanda_scores

METHODS = ("wanda", "magnitude")


@dataclass(frozen=True)
class PruningResult:
    """What was done: ``sparsity`` is the share of exact zeros among the pruned linears' weights, counted."""

    method: str
    pattern: str
    sparsity: float
    linears: int


def check_pruning(model: ChatModel, method: str, sparsity: float, pattern: str) -> None:
    """Refuse settings that cannot work on this model before anything is computed.

    Raises:
        UsageError: unknown method, sparsity outside [0, 1), or a pattern that does not divide a linear's width.
    """
    if method not in METHODS:
        raise UsageError(f"prune: method is {method!r}; one of {', '.join(METHODS)} is needed. Choose one of them.")
    if not 0 <= sparsity < 1:
        raise UsageError(
            f"prune: sparsity is {sparsity}; a fraction with 0 <= sparsity < 1 is needed. Use for example 0.5."
        )
    groups = parse_pattern(pattern)
    if groups is None:
        return
    for block, name, linear in model.linears():
        if linear.weight.shape[1] % groups[1]:
            raise UsageError(
                f"prune: pattern {pattern} does not divide the {linear.weight.shape[1]} inputs of {name} in block "
                f"{block}; a width divisible by {groups[1]} is needed. Use another pattern, or unstructured."
            )


def prune_model(
    model: ChatModel,
    calibration: Sequence[TokenBatch],
    *,
    method: str = "wanda",
    sparsity: float = 0.5,
    pattern: str = "unstructured",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PruningResult:
    """Prune every linear of every block in place.

    Args:
        model: changed in place.
        calibration: token batches; their input norms weigh the weights (Wanda). Ignored by ``magnitude``.
        method: ``wanda`` or ``magnitude``.
        sparsity: fraction of each row to remove; with an ``N:M`` pattern N/M rules instead.
        pattern: ``unstructured`` or ``N:M``.
        progress: called with (blocks done, blocks).

    Raises:
        UsageError: settings that do not fit this model.

    Source:
        Wanda: Sun et al. 2023, arXiv:2306.11695. The order of blocks is theirs.
    """
    check_pruning(model, method, sparsity, pattern)
    groups = parse_pattern(pattern)
    walk = Walk(model, calibration) if method == "wanda" else None
    names = model.architecture.linear_names
    for block in range(len(model.blocks)):
        squares = _input_squares(walk, names) if walk else {}
        for name in names:
            linear = model.linear(block, name)
            scores = wanda_scores(linear.weight, mx.sqrt(squares[name])) if walk else magnitude_scores(linear.weight)
            mask = n_of_m_mask(scores, *groups) if groups else lowest_mask(scores, sparsity)
            linear.weight = mx.where(mask, mx.zeros_like(linear.weight), linear.weight)
            mx.eval(linear.weight)
        if walk:
            walk.advance()
        progress(block + 1, len(model.blocks))
    return PruningResult(method, pattern, model.sparsity(), len(names) * len(model.blocks))


def _input_squares(walk: Walk, names: Sequence[str]) -> dict[str, mx.array]:
    """Per linear of the current block the sum of x^2 per input feature, ``[in]`` float32, over the counted tokens."""
    totals: dict[str, mx.array] = {}
    for index, batch in enumerate(walk.batches):
        for name, value in walk.inputs_of(index, names).items():
            squares = mx.square(flatten_counted(value, batch.counted)).sum(axis=0)
            totals[name] = totals[name] + squares if name in totals else squares
        mx.eval(totals)
    return totals
