"""How much the linears of each block are to lose, so that together they lose what was asked.

``uniform``: all the same. ``owl``: blocks with more outliers among their Wanda scores lose less. ``safety``: of the
blocks that write the refusal direction, those lose less that stop telling harmful from harmless prompts along it when
pruned. Kernels spread a total by importance; `allocate_sparsity` measures it on the model before it is pruned.

Source: OWL: Yin et al. 2023, arXiv:2310.05175. The allocation by the refusal direction is ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx

from aird_mlx.activations import TokenBatch, Walk, batch_sequences, take_positions
from aird_mlx.direction import Direction
from aird_mlx.errors import DirectionError, PromptError, UsageError
from aird_mlx.model import ChatModel
from aird_mlx.pruning.masks import check_word, removal_mask, wanda_scores
from aird_mlx.pruning.moments import input_squares

ALLOCATIONS = ("uniform", "owl", "safety")
# OWL's M and lambda: an outlier is so many times the mean; blocks differ by twice lambda.
OUTLIER_MULTIPLE, SPREAD = 5.0, 0.08
MOST_SPARSITY = 0.99


@dataclass(frozen=True)
class Allocation:
    """What each linear is to lose.

    Attributes:
        kind: of `ALLOCATIONS`.
        sparsities: by (block, name) the fraction of its weights.
    """

    kind: str
    sparsities: Mapping[tuple[int, str], float]


def spread_sparsities(
    importance: Sequence[float], weights: Sequence[int], sparsity: float, spread: float
) -> list[float]:
    """Sparsities that fall with importance, whose mean over all weights is the one asked for.

    The most important part loses ``2 * spread`` less than the least important one, as in OWL; where that would be
    outside [0, 0.99], it is cut there and the others make up for it.

    Args:
        importance: per part, not negative.
        weights: how many weights each part has.
        sparsity: wanted mean, in [0, 0.99].
        spread: OWL's lambda, >= 0.

    Raises:
        UsageError: a negative spread, which would remove most from what matters most.

    >>> [round(one, 3) for one in spread_sparsities([0.0, 1.0, 2.0], [1, 1, 1], 0.5, 0.1)]
    [0.6, 0.5, 0.4]
    """
    if not spread >= 0:
        raise UsageError(f"prune: the spread of an allocation is {spread}; 0 or more is needed. Use {SPREAD}.")
    low, high = min(importance), max(importance)
    scale = 2 * spread / (high - low) if high > low else 0.0
    down = [scale * (one - low) for one in importance]
    most = max(MOST_SPARSITY, sparsity)

    def shifted(shift: float) -> list[float]:
        return [min(max(shift - one, 0.0), most) for one in down]

    below, above = 0.0, most + 2 * spread
    for _ in range(200):
        middle = (below + above) / 2
        mean = sum(one * count for one, count in zip(shifted(middle), weights, strict=True)) / sum(weights)
        below, above = (middle, above) if mean < sparsity else (below, middle)
    return shifted((below + above) / 2)


def whole_rows(sparsities: Sequence[float], shapes: Sequence[tuple[int, int]], sparsity: float) -> list[float]:
    """The same in whole weights per row, and in all as many as ``sparsity`` takes from every row of every linear.

    Args:
        sparsities: per linear.
        shapes: their (out, in).
        sparsity: the mean that was asked for.

    >>> whole_rows([0.3, 0.7], [(1, 4), (1, 4)], 0.5)
    [0.25, 0.75]
    """
    wanted = [width * one for (_, width), one in zip(shapes, sparsities, strict=True)]
    counts = [int(one + 1e-9) for one in wanted]
    goal = sum(rows * int(width * sparsity + 1e-9) for rows, width in shapes)
    total = sum(rows * count for (rows, _), count in zip(shapes, counts, strict=True))
    nearest = sorted(range(len(counts)), key=lambda index: (counts[index] - wanted[index], index))
    for index in nearest:
        if total + shapes[index][0] <= goal and counts[index] < shapes[index][1] - 1:
            counts[index] += 1
            total += shapes[index][0]
    while total > goal:
        for index in reversed(nearest):
            if total > goal and counts[index] > 0:
                counts[index] -= 1
                total -= shapes[index][0]
    return [count / width for count, (_, width) in zip(counts, shapes, strict=True)]


def outlier_share(scores: Sequence[mx.array], multiple: float = OUTLIER_MULTIPLE) -> float:
    """Share of a block's scores, all linears together, above ``multiple`` times their mean.

    >>> outlier_share([mx.array([[1.0, 1.0, 1.0]]), mx.array([[1.0] * 6 + [100.0]])])
    0.1
    """
    size = sum(one.size for one in scores)
    mean = sum(one.sum().item() for one in scores) / size
    return float(sum((one > multiple * mean).sum().item() for one in scores) / size)


def allocate_sparsity(
    model: ChatModel,
    kind: str,
    sparsity: float,
    calibration: Sequence[TokenBatch] = (),
    *,
    direction: Direction | None = None,
    harmful: Sequence[Sequence[int]] = (),
    harmless: Sequence[Sequence[int]] = (),
    spread: float = SPREAD,
    by_row: bool = True,
) -> Allocation:
    """Spread a sparsity over the blocks of a dense model by what they are worth.

    Args:
        model: not pruned yet; left as found.
        kind: of `ALLOCATIONS`.
        sparsity: wanted mean.
        calibration: of ``owl``: batches whose inputs weigh the weights.
        direction: of ``safety``: the model's own refusal direction.
        harmful, harmless: of ``safety``: token ids of prompts.
        spread: half of how much the most and the least important block differ by.
        by_row: in whole weights per row, as ``scope="row"`` removes them.

    Raises:
        UsageError: another kind, or a negative spread.
        PromptError, DirectionError: what the kind needs is not given.
    """
    check_word("allocation", kind, ALLOCATIONS)
    importance = [0.0] * len(model.blocks)
    if kind == "owl":
        if not calibration:
            raise PromptError("calibration: 0 tokens; allocation owl needs some. Give texts or dialogues.")
        importance = _outlier_shares(model, calibration)
    elif kind == "safety":
        if direction is None or not harmful or not harmless:
            raise DirectionError(
                "prune: allocation safety without a refusal direction and prompts of both kinds; they are needed. "
                "Measure the direction of the dense model first."
            )
        importance = _lost_contrasts(model, sparsity, direction, harmful, harmless)
    places = [
        (block, name, (math.prod(linear.weight.shape[:-1]), linear.weight.shape[-1]))
        for block, name, linear in model.linears()
    ]
    shapes = [shape for _, _, shape in places]
    weights = [rows * width for rows, width in shapes]
    sparsities = spread_sparsities([importance[block] for block, _, _ in places], weights, sparsity, spread)
    if by_row:
        sparsities = whole_rows(sparsities, shapes, sparsity)
    return Allocation(kind, {(block, name): own for (block, name, _), own in zip(places, sparsities, strict=True)})


def _outlier_shares(model: ChatModel, calibration: Sequence[TokenBatch]) -> list[float]:
    walk = Walk(model, calibration)
    shares = []
    while not walk.is_done:
        names = walk.layout.linear_names
        squares = input_squares(walk, names).values
        weights = {name: model.linear(walk.layer, name).weight for name in names}
        shares.append(outlier_share([wanda_scores(weights[name], mx.sqrt(squares[name])) for name in names]))
        walk.advance()
    return shares


def _lost_contrasts(
    model: ChatModel,
    sparsity: float,
    direction: Direction,
    harmful: Sequence[Sequence[int]],
    harmless: Sequence[Sequence[int]],
) -> list[float]:
    """Per block: by how much pruning it alone changes the difference of mean r^T h of the two kinds after it.

    r^T h at the direction's own token position; the block is pruned by Wanda on these prompts and put back. Blocks from
    the direction's layer on do not write it and get 0; counting them too kept fewer refusals on the demo.
    """
    walk = Walk(model, batch_sequences([*harmful, *harmless]))
    signs = mx.array([1 / len(harmful)] * len(harmful) + [-1 / len(harmless)] * len(harmless))

    def contrast() -> float:
        total = 0.0
        for index, batch in enumerate(walk.batches):
            states = take_positions(walk.run_block(index), batch.lengths, [direction.position])[:, 0]
            along = states.astype(mx.float32) @ direction.vector
            total += (along * signs[mx.array(batch.order)]).sum().item()
        return total

    lost = [0.0] * len(model.blocks)
    while walk.layer < direction.layer:
        names = walk.layout.linear_names
        squares = input_squares(walk, names).values
        linears = {name: model.linear(walk.layer, name) for name in names}
        dense = {name: linear.weight for name, linear in linears.items()}
        before = contrast()
        try:
            for name, linear in linears.items():
                mask = removal_mask(wanda_scores(linear.weight, mx.sqrt(squares[name])), sparsity)
                linear.weight = mx.where(mask, mx.zeros_like(linear.weight), linear.weight)
            lost[walk.layer] = abs(before - contrast())
        finally:
            for name, linear in linears.items():
                linear.weight = dense[name]
        walk.advance()
    return lost
