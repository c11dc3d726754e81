"""Distillation: nearer to the dense model's next tokens, inside the mask, the same every time, and never worse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from aird_mlx.activations import TokenBatch, batch_sequences
from aird_mlx.evaluation import measure_utility
from aird_mlx.model import ChatModel, load
from aird_mlx.patch import Patch, patched
from aird_mlx.pruning import prune_model
from aird_mlx.repair import RULES, RepairPlan, goes_on_from, solve_patch
from aird_mlx.repair.descent import descend
from aird_mlx.repair.distillation import fits_in_memory, needed_bytes
from aird_mlx.search import spaces_for

SEQUENCES = [np.random.default_rng(seed).integers(3, 300, 10 + seed).tolist() for seed in range(30)]
DIRECTION = mx.ones(32) / np.sqrt(32)
PLAN = RepairPlan("distill", (0, 1, 2, 3), steps=60)


def calibration() -> list[TokenBatch]:
    return batch_sequences(SEQUENCES, tokens_per_batch=400)


@pytest.fixture
def pair(model_folder: Callable[..., Path]) -> tuple[ChatModel, ChatModel]:
    """A pruned model and the dense one it was made from."""
    folder = model_folder()
    model, dense = load(folder), load(folder)
    prune_model(model, calibration(), sparsity=0.5)
    return model, dense


def distance(model: ChatModel, dense: ChatModel, patch: Patch) -> float:
    """Mean KL to the dense model over calibration tokens with the patch in."""
    with patched(model, patch):
        found = measure_utility(model, calibration(), dense=dense).kl_to_dense
    assert found is not None
    return found


def test_distilling_comes_nearer_than_the_reconstruction_it_starts_from(pair: tuple[ChatModel, ChatModel]) -> None:
    model, dense = pair
    start = solve_patch(model, dense, calibration(), DIRECTION, RepairPlan("reconstruct", PLAN.blocks, steps=60))
    patch = solve_patch(model, dense, calibration(), DIRECTION, PLAN, start=start)
    assert distance(model, dense, patch) < 0.9 * distance(model, dense, start)
    assert patch.rule == "distill"
    assert [(part.block, part.name) for part in patch.parts] == [(block, name) for block, name, _ in model.linears()]


def test_zeros_stay_and_both_models_are_left_as_found(pair: tuple[ChatModel, ChatModel]) -> None:
    before = [[np.array(linear.weight) for _, _, linear in model.linears()] for model in pair]
    patch = solve_patch(*pair, calibration(), DIRECTION, PLAN)
    for model, weights in zip(pair, before, strict=True):
        for (_, _, linear), weight in zip(model.linears(), weights, strict=True):
            np.testing.assert_array_equal(np.array(linear.weight), weight)
    for part, weight in zip(patch.parts, before[0], strict=True):
        assert np.array(part.change())[weight != 0].any()
        assert not np.array(part.change())[weight == 0].any()


def test_without_a_start_it_reconstructs_first_and_is_the_same_every_time(pair: tuple[ChatModel, ChatModel]) -> None:
    first = goes_on_from(PLAN)
    assert first is not None
    assert (first.rule, first.blocks, first.steps) == ("reconstruct", PLAN.blocks, PLAN.steps)
    start = solve_patch(*pair, calibration(), DIRECTION, first)
    given = solve_patch(*pair, calibration(), DIRECTION, PLAN, start=start)
    alone = solve_patch(*pair, calibration(), DIRECTION, PLAN)
    for one, other in zip(given.parts, alone.parts, strict=True):
        assert mx.array_equal(one.change(), other.change()).item()


def test_only_the_blocks_of_the_plan_change(pair: tuple[ChatModel, ChatModel]) -> None:
    patch = solve_patch(*pair, calibration(), DIRECTION, RepairPlan("distill", (1, 2), steps=10))
    assert patch.layers == [1, 2]


def test_descent_finds_the_least_squares_solution_inside_the_mask() -> None:
    import mlx.nn as nn

    generator = np.random.default_rng(0)
    inputs, target = generator.standard_normal((200, 6)), generator.standard_normal((3, 6))
    kept = generator.random((3, 6)) < 0.6
    linear = nn.Linear(6, 3, bias=False)
    linear.weight = mx.array(np.where(kept, generator.standard_normal((3, 6)), 0).astype(np.float32))
    wanted = mx.array((inputs @ target.T).astype(np.float32))

    def error(index: int, rows: object) -> mx.array:
        return mx.square(linear(mx.array(inputs.astype(np.float32))) - wanted).mean()

    found = descend({"only": linear}, error, [(0, [0])] * 400, learning_rate=0.1, checked=[(0, [0])])["only"]
    for row in range(3):
        columns = np.flatnonzero(kept[row])
        solution = np.linalg.lstsq(inputs[:, columns], inputs @ target[row], rcond=None)[0]
        np.testing.assert_allclose(np.array(found)[row, columns], solution, atol=5e-3)
    assert not np.array(found)[~kept].any()


def test_descent_is_relative_to_the_size_of_the_weights() -> None:
    import mlx.nn as nn

    start = mx.random.normal((3, 6), key=mx.random.key(0))
    target = mx.random.normal((3, 6), key=mx.random.key(1))
    found = []
    for size in (1.0, 2.0**30):
        linear = nn.Linear(6, 3, bias=False)
        linear.weight = size * start
        moved = descend(
            {"only": linear}, lambda index, rows, linear=linear, size=size: mx.abs(linear.weight / size - target).sum(),
            [(0, [0])] * 20, learning_rate=0.1, checked=[(0, [0])],
        )  # fmt: skip
        assert mx.array_equal(linear.weight, size * start).item()
        found.append(np.array(moved["only"] / size))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
    assert np.abs(found[0] - np.array(start)).max() > 0.5


def test_a_linear_without_survivors_stays_zero() -> None:
    import mlx.nn as nn

    linears = {name: nn.Linear(4, 4, bias=False) for name in ("empty", "full")}
    linears["empty"].weight = mx.zeros((4, 4))

    def error(index: int, rows: object) -> mx.array:
        return sum(mx.square(one.weight - 1).sum() for one in linears.values())  # type: ignore[return-value]

    found = descend(linears, error, [(0, [0])] * 5, learning_rate=0.1, checked=[(0, [0])])
    assert not np.array(found["empty"]).any()
    assert not mx.array_equal(found["full"], linears["full"].weight).item()


def test_steps_that_lead_away_are_not_taken() -> None:
    import mlx.nn as nn

    linear = nn.Linear(4, 4, bias=False)
    start = np.array(linear.weight)
    found = descend(
        {"only": linear}, lambda index, rows: mx.square(linear.weight - mx.array(start)).sum(), [(0, [0])] * 3,
        learning_rate=100.0, checked=[(0, [0])],
    )  # fmt: skip
    np.testing.assert_array_equal(np.array(found["only"]), start)


def test_memory_is_counted_before_distilling_is_planned(pair: tuple[ChatModel, ChatModel]) -> None:
    model = pair[0]
    weights = sum(linear.weight.size for _, _, linear in model.linears())
    assert needed_bytes(model) == 2 * 4 * model.parameters + 20 * weights
    assert fits_in_memory(model)
    rules = [
        {
            space.first.rule
            for space in spaces_for("auto", source_layer=2, blocks=4, inside_mask=True, distillable=distillable)
        }
        for distillable in (True, False)
    ]
    assert rules == [set(RULES), {*RULES} - {"distill"}]
