"""Block reconstruction: nearer to the dense block, inside the mask, the same every time, and never worse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

import oracle
from aird_mlx.activations import TokenBatch, Walk, batch_sequences
from aird_mlx.evaluation import measure_utility
from aird_mlx.model import ChatModel, load
from aird_mlx.patch import fold
from aird_mlx.pruning import prune_model
from aird_mlx.repair import RepairPlan, reconstruct_block, reconstruction_error, solve_patch, token_weights
from aird_mlx.repair.descent import schedule_rows
from aird_mlx.repair.reconstruction import LONGEST

SEQUENCES = [np.random.default_rng(seed).integers(3, 300, 10 + seed).tolist() for seed in range(30)]
HELD_OUT = [np.random.default_rng(100 + seed).integers(3, 300, 40).tolist() for seed in range(10)]
DIRECTION = mx.ones(32) / np.sqrt(32)


def calibration() -> list[TokenBatch]:
    return batch_sequences(SEQUENCES, first_counted=[seed % 4 for seed in range(30)], tokens_per_batch=400)


@pytest.fixture
def pair(model_folder: Callable[..., Path]) -> Callable[..., tuple[ChatModel, ChatModel]]:
    """A pruned model and the dense one it was made from."""

    def make(pattern: str = "unstructured", model_type: str = "llama") -> tuple[ChatModel, ChatModel]:
        folder = model_folder(model_type)
        model, dense = load(folder), load(folder)
        prune_model(model, calibration(), sparsity=0.5, pattern=pattern)
        return model, dense

    return make


def block_outputs(model: ChatModel, dense: ChatModel, block: int = 1) -> tuple[Walk, list[mx.array]]:
    """The compressed model's walk at ``block``, and what the dense block gives."""
    walks = Walk(model, calibration()), Walk(dense, calibration())
    for walk in walks:
        walk.move_to(block)
    wanted = [walks[1].run_block(index) for index in range(len(walks[1].batches))]
    mx.eval(wanted)
    return walks[0], wanted


def error_of(walk: Walk, wanted: list[mx.array], new: dict[str, mx.array]) -> tuple[float, float]:
    """Mean squared error over counted tokens, whole and along the direction, in float64, with ``new`` weights."""
    for name, weight in new.items():
        walk.model.linear(walk.layer, name).weight = weight
    whole = along = 0.0
    for index, batch in enumerate(walk.batches):
        outputs, targets = (np.array(one.astype(mx.float32)) for one in (walk.run_block(index), wanted[index]))
        error = outputs.astype(np.float64) - targets
        counted = np.array(batch.counted)
        whole += float((counted * (error**2).sum(-1)).sum())
        along += float((counted * (error @ np.array(DIRECTION)) ** 2).sum())
    return whole, along


def weights_of(walk: Walk) -> dict[str, mx.array]:
    return {name: walk.model.linear(walk.layer, name).weight for name in walk.model.layout(0).linear_names}


@given(st.integers(0, 2**31), st.sampled_from([0.0, 3.0]), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_error_is_the_weighted_sum_of_squares(seed: int, beta: float, count: int) -> None:
    generator = np.random.default_rng(seed)
    found, wanted = (generator.normal(size=(2, 3, 5)).astype(np.float32) for _ in range(2))
    weight, directions = generator.random((2, 3)).astype(np.float32), oracle.orthonormal_rows(generator, count, 5)
    error = (found - wanted).astype(np.float64)
    expected = (weight * ((error**2).sum(-1) + beta * ((error @ directions.T) ** 2).sum(-1))).sum()
    arrays = (found, wanted, weight, directions.astype(np.float32))
    got = reconstruction_error(*map(mx.array, arrays), beta).item()
    assert got == pytest.approx(expected, rel=1e-4)


def test_huge_hidden_state_does_not_rule_the_error() -> None:
    wanted = mx.concatenate([mx.full((1, 1, 4), 1000.0), mx.ones((1, 9, 4))], axis=1)
    (weights,) = token_weights([wanted], [mx.ones((1, 10))])
    # All off by the same share: the giant may count as LONGEST of the others, squared, and no more.
    shares = np.array(weights * mx.square(0.1 * wanted).sum(-1))[0]
    assert shares[0] == pytest.approx(LONGEST**2 * shares[1], rel=1e-4)


def test_weights_do_not_depend_on_what_does_not_count() -> None:
    wanted = mx.random.normal((2, 6, 4), key=mx.random.key(0))
    counted = mx.array([[1.0, 1, 1, 1, 0, 0], [1.0, 1, 1, 0, 0, 0]])
    noisy = mx.where(counted[..., None] > 0, wanted, 1e4)
    one, other = (token_weights([values], [counted])[0] for values in (wanted, noisy))
    assert mx.array_equal(one, other).item()
    assert not (one * (1 - counted)).any().item()


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_block_comes_nearer_to_the_dense_one_and_keeps_every_zero(
    pair: Callable[..., tuple[ChatModel, ChatModel]], model_type: str
) -> None:
    walk, wanted = block_outputs(*pair(model_type=model_type))
    before = weights_of(walk)
    found = reconstruct_block(walk, wanted, steps=150)
    for name, weight in weights_of(walk).items():
        assert weight is before[name], "the model is left as found"
        assert not np.array(found[name])[np.array(weight) == 0].any()
    assert error_of(walk, wanted, found)[0] < 0.5 * error_of(walk, wanted, before)[0]


def test_together_beats_linear_by_linear_on_the_blocks_output(
    pair: Callable[..., tuple[ChatModel, ChatModel]],
) -> None:
    model, dense = pair()
    walk, wanted = block_outputs(model, dense)
    patch = solve_patch(model, dense, calibration(), DIRECTION, RepairPlan("refit", (1,)))
    one_by_one = {part.name: model.linear(1, part.name).weight + part.change() for part in patch.parts}
    together = reconstruct_block(walk, wanted, steps=200)
    assert error_of(walk, wanted, together)[0] < error_of(walk, wanted, one_by_one)[0]


def test_beta_lowers_the_error_along_the_direction(pair: Callable[..., tuple[ChatModel, ChatModel]]) -> None:
    walk, wanted = block_outputs(*pair())
    before = weights_of(walk)
    errors = []
    for beta in (0.0, 100.0):
        found = reconstruct_block(walk, wanted, steps=100, directions=DIRECTION[None], beta=beta)
        errors.append(error_of(walk, wanted, found)[1])
        error_of(walk, wanted, before)
    assert errors[1] < 0.5 * errors[0]


def test_steps_that_lead_away_are_not_taken(pair: Callable[..., tuple[ChatModel, ChatModel]]) -> None:
    walk, wanted = block_outputs(*pair())
    before = weights_of(walk)
    found = reconstruct_block(walk, wanted, steps=3, learning_rate=100.0)
    for name, weight in before.items():
        np.testing.assert_array_equal(np.array(found[name]), np.array(weight))


def test_model_is_left_as_found_when_the_steps_are_interrupted(
    pair: Callable[..., tuple[ChatModel, ChatModel]], monkeypatch: pytest.MonkeyPatch
) -> None:
    walk, wanted = block_outputs(*pair())
    before = weights_of(walk)
    calls = iter(range(1000))
    run_block = Walk.run_block

    def interrupt(self: Walk, *arguments: object, **more: object) -> mx.array:
        if next(calls) == 10:
            raise KeyboardInterrupt
        return run_block(self, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Walk, "run_block", interrupt)
    with pytest.raises(KeyboardInterrupt):
        reconstruct_block(walk, wanted, steps=50)
    assert all(weight is before[name] for name, weight in weights_of(walk).items())


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_whole_model_comes_nearer_to_the_dense_one_on_text_it_was_not_solved_on(
    pair: Callable[..., tuple[ChatModel, ChatModel]], pattern: str
) -> None:
    model, dense = pair(pattern)
    held_out = batch_sequences(HELD_OUT)
    before = measure_utility(model, held_out, dense=dense).kl_to_dense
    plan = RepairPlan("reconstruct", (0, 1, 2, 3), steps=60)
    fold(model, solve_patch(model, dense, calibration(), DIRECTION, plan))
    after = measure_utility(model, held_out, dense=dense).kl_to_dense
    assert before is not None
    assert after is not None
    assert after < 0.7 * before


def test_same_plan_gives_the_same_patch(pair: Callable[..., tuple[ChatModel, ChatModel]]) -> None:
    plan = RepairPlan("reconstruct", (0, 1), steps=10)
    one, other = (solve_patch(*pair(), calibration(), DIRECTION, plan) for _ in range(2))
    for mine, theirs in zip(one.parts, other.parts, strict=True):
        assert mx.array_equal(mine.change(), theirs.change()).item()


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_models_keep_dtype_and_mask(
    pair: Callable[..., tuple[ChatModel, ChatModel]], dtype: mx.Dtype
) -> None:
    model, dense = pair()
    for one in (model, dense):
        one.network.set_dtype(dtype)
    walk, wanted = block_outputs(model, dense)
    before = weights_of(walk)
    plan = RepairPlan("reconstruct", (1,), steps=40)
    assert fold(model, solve_patch(model, dense, calibration(), DIRECTION, plan)).sparsity_lost == 0
    after = weights_of(walk)
    assert all(weight.dtype == dtype for weight in after.values())
    assert error_of(walk, wanted, after)[0] < 0.7 * error_of(walk, wanted, before)[0]


def test_every_sequence_comes_once_before_any_comes_again() -> None:
    batches = calibration()
    sizes = [batch.ids.shape[0] for batch in batches]
    once = len(schedule_rows(batches, 1000, 100, seed=0)) and sum(
        -(-size // max(1, 100 // batch.ids.shape[1])) for size, batch in zip(sizes, batches, strict=True)
    )
    schedule = schedule_rows(batches, 2 * once, 100, seed=0)
    for half in (schedule[:once], schedule[once:]):
        seen = sorted((index, row) for index, rows in half for row in rows)
        assert seen == [(index, row) for index, size in enumerate(sizes) for row in range(size)]
    assert schedule[:once] != schedule[once:]
    assert schedule == schedule_rows(batches, 2 * once, 100, seed=0)
    assert schedule != schedule_rows(batches, 2 * once, 100, seed=1)


@pytest.mark.parametrize("seed", range(5))
def test_every_step_holds_all_kinds_in_their_shares(seed: int) -> None:
    kinds = [0] * 50 + [1] * 30 + [2] * 20  # one after the other, as dialogues of a calibration come
    generator = np.random.default_rng(seed)
    (batch,) = batch_sequences([[1] * int(length) for length in generator.integers(5, 11, size=100)])
    for index, rows in schedule_rows([batch], 5, 20 * batch.ids.shape[1], seed):
        assert (index, len(rows)) == (0, 20)
        shares = np.bincount([kinds[batch.order[row]] for row in rows], minlength=3)
        assert np.abs(shares - [10, 6, 4]).max() <= 1


def test_calibrated_without_any_sequence_leaves_the_weights(tiny: ChatModel) -> None:
    patch = solve_patch(tiny, tiny, [], DIRECTION, RepairPlan("reconstruct", (0,)))
    assert all(not np.array(part.change()).any() for part in patch.parts)


def test_model_equal_to_the_dense_one_stays(tiny: ChatModel) -> None:
    before = dict(tree_flatten(tiny.network.parameters()))
    fold(tiny, solve_patch(tiny, tiny, calibration(), DIRECTION, RepairPlan("reconstruct", (0, 1), steps=5)))
    for name, value in tree_flatten(tiny.network.parameters()):
        np.testing.assert_allclose(np.array(value), np.array(before[name]), atol=1e-5)
