"""Sparsity spread over blocks: the asked total is kept, importance is what is claimed, and no weight is touched."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten

import oracle
from aird_mlx.activations import batch_sequences
from aird_mlx.direction import Direction
from aird_mlx.errors import DirectionError, PromptError, UsageError
from aird_mlx.model import ChatModel
from aird_mlx.pruning import allocate_sparsity, outlier_share, prune_model, spread_sparsities, whole_rows

SEQUENCES = [list(range(3, 40)), [40, 41, 42, 43, 44], [7] * 9, [100, 5, 200, 11, 77, 250, 31, 8, 9, 64, 65]]
HARMFUL, HARMLESS = [[5, 6, 7, 8], [9, 10, 11, 12, 13]], [[20, 21, 22, 23], [30, 31, 32, 33], [34, 35, 36, 37]]


def direction_at(layer: int) -> Direction:
    vector = mx.random.normal((32,), key=mx.random.key(1))
    return Direction(vector / mx.linalg.norm(vector), layer, -1, 1.0, 0.0, 0.0, 0.0, True, (2, 3), (2, 3))


def removed(model: ChatModel, sparsities: dict[tuple[int, str], float]) -> float:
    shapes = {(block, name): linear.weight.shape for block, name, linear in model.linears()}
    return sum(rows * int(width * sparsities[place] + 1e-9) for place, (rows, width) in shapes.items())


PARTS = st.lists(st.tuples(st.floats(0, 100), st.integers(1, 10_000)), min_size=1, max_size=12)


@given(PARTS, st.floats(0, 0.98), st.floats(0, 0.5))
def test_spread_sparsities_keep_the_mean_and_the_order(
    parts: list[tuple[float, int]], sparsity: float, spread: float
) -> None:
    importance, weights = zip(*parts, strict=True)
    found = spread_sparsities(importance, weights, sparsity, spread)
    assert np.average(found, weights=weights) == pytest.approx(sparsity, abs=1e-6)
    assert all(0 <= one < 1 for one in found)
    for one, other in zip(np.argsort(importance)[:-1], np.argsort(importance)[1:], strict=True):
        assert found[other] <= found[one] + 1e-9
    assert max(found) - min(found) <= 2 * spread + 1e-9


def test_spread_sparsities_are_those_of_owl() -> None:
    shares, spread = np.array([0.01, 0.03, 0.02, 0.05]), 0.08
    scaled = (shares - shares.min()) / (shares.max() - shares.min()) * 2 * spread
    expected = 1 - (scaled - scaled.mean() + 0.4)
    np.testing.assert_allclose(spread_sparsities(shares.tolist(), [7] * 4, 0.6, spread), expected, atol=1e-9)


def test_negative_spread_is_refused() -> None:
    with pytest.raises(UsageError, match=r"spread of an allocation is -0\.1"):
        spread_sparsities([0.0, 1.0], [1, 1], 0.5, -0.1)


@given(
    st.lists(st.tuples(st.floats(0, 0.99), st.sampled_from([(4, 8), (16, 8), (8, 16)])), min_size=2, max_size=9),
)
def test_whole_rows_remove_no_more_than_uniform_and_little_less(parts: list[tuple[float, tuple[int, int]]]) -> None:
    sparsities, shapes = zip(*parts, strict=True)
    sizes = [rows * width for rows, width in shapes]
    mean = float(np.average(sparsities, weights=sizes))
    counts = [width * one for (_, width), one in zip(shapes, whole_rows(sparsities, shapes, mean), strict=True)]
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-9)
    total = sum(round(count) * rows for count, (rows, _) in zip(counts, shapes, strict=True))
    goal = sum(rows * int(width * mean + 1e-9) for rows, width in shapes)
    assert goal - 16 <= total <= goal


def test_outlier_share_counts_over_all_linears_of_a_block() -> None:
    scores = [np.random.default_rng(seed).exponential(size=(9, 30)).astype(np.float32) ** 2 for seed in (0, 1)]
    flat = np.concatenate([one.ravel() for one in scores]).astype(np.float64)
    assert outlier_share([mx.array(one) for one in scores]) == pytest.approx(np.mean(flat > 5 * flat.mean()))


def test_owl_spares_the_blocks_with_most_outliers(tiny: ChatModel) -> None:
    linear = tiny.linear(2, "mlp.up_proj")
    linear.weight = linear.weight * mx.where(mx.arange(32) == 3, 40.0, 1.0)
    found = allocate_sparsity(tiny, "owl", 0.5, batch_sequences(SEQUENCES)).sparsities
    blocks = [found[block, "mlp.up_proj"] for block in range(4)]
    assert blocks[2] == min(blocks) < max(blocks)


@pytest.mark.parametrize("kind", ["uniform", "owl", "safety"])
def test_allocation_keeps_the_total_and_leaves_the_model_as_found(tiny: ChatModel, kind: str) -> None:
    before = {name: np.array(value) for name, value in tree_flatten(tiny.network.parameters())}
    found = allocate_sparsity(
        tiny,
        kind,
        0.6,
        batch_sequences(SEQUENCES),
        direction=direction_at(2),
        harmful=HARMFUL,
        harmless=HARMLESS,
    )
    for name, value in tree_flatten(tiny.network.parameters()):
        np.testing.assert_array_equal(np.array(value), before[name], err_msg=name)
    uniform = dict.fromkeys(found.sparsities, 0.6)
    assert removed(tiny, dict(found.sparsities)) == pytest.approx(removed(tiny, uniform), abs=64)
    report = prune_model(tiny, [], method="magnitude", sparsity=0.6, allocation=found)
    assert report.allocation == kind
    for one in report.tensors:
        assert one.sparsity == one.asked == found.sparsities[one.block, one.name]


def test_safety_measures_the_contrast_that_pruning_a_block_costs(tiny: ChatModel) -> None:
    """By numpy: prune each block alone by Wanda on these prompts, and see r^T h of the two kinds come together."""
    direction = direction_at(3)
    weights = dict(tree_flatten(tiny.network.parameters()))
    vector = np.array(direction.vector, dtype=np.float64)
    masks = []
    states = [oracle.Llama(weights, tiny.config).hidden(ids) for ids in (*HARMFUL, *HARMLESS)]
    lost = [0.0] * 4
    for block in range(3):
        llama = oracle.Llama(weights, tiny.config)
        squares: dict[str, np.ndarray] = {}
        for hidden in states:

            def see(name: str, value: np.ndarray, sums: dict[str, np.ndarray] = squares) -> None:
                sums[name] = sums.get(name, 0.0) + np.sum(value**2, axis=0)

            llama.block(block, hidden[block], see)
        for name, sums in squares.items():
            key = f"model.layers.{block}.{name}.weight"
            scores = np.abs(llama.weights[key]) * np.sqrt(sums)
            masks.append(oracle.lowest_mask(scores, int(scores.shape[1] * 0.5)))
            llama.weights[key] = np.where(masks[-1], 0.0, llama.weights[key])
        along = [(llama.block(block, hidden[block])[-1] - hidden[block + 1][-1]) @ vector for hidden in states]
        lost[block] = abs(np.mean(along[:2]) - np.mean(along[2:]))
    found = allocate_sparsity(
        tiny, "safety", 0.5, direction=direction, harmful=HARMFUL, harmless=HARMLESS, by_row=False
    )
    sizes = [linear.weight.size for _, _, linear in tiny.linears()]
    expected = spread_sparsities([lost[block] for block, _, _ in tiny.linears()], sizes, 0.5, 0.08)
    np.testing.assert_allclose(list(found.sparsities.values()), expected, atol=1e-3)
    assert found.sparsities[3, "mlp.up_proj"] == max(found.sparsities.values())


def test_what_an_allocation_lacks_is_one_line(tiny: ChatModel) -> None:
    with pytest.raises(UsageError, match="allocation is 'fair'"):
        allocate_sparsity(tiny, "fair", 0.5)
    with pytest.raises(PromptError, match="0 tokens; allocation owl"):
        allocate_sparsity(tiny, "owl", 0.5)
    with pytest.raises(DirectionError, match="without a refusal direction"):
        allocate_sparsity(tiny, "safety", 0.5, harmful=HARMFUL, harmless=HARMLESS)
