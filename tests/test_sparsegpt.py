"""SparseGPT against the published column loop in float64, on its own objective, and in a walk through a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
from aird_mlx.activations import Walk, batch_sequences
from aird_mlx.errors import ShapeError, UsageError
from aird_mlx.model import ChatModel, load
from aird_mlx.pruning import prune_model, sparsify_weight
from aird_mlx.pruning.moments import input_squares, second_moments
from aird_mlx.pruning.sparsegpt import inverse_factor

SEQUENCES = [list(range(3, 90)), [40, 41, 42, 43, 44] * 6, [100, 5, 200, 11, 77, 250, 31, 8, 9, 64, 65] * 5]


def layer(seed: int, rows: int, width: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """A weight and the second moment of correlated inputs of very different sizes, both with float32 values."""
    generator = np.random.default_rng(seed)
    mix = generator.normal(size=(width, width)) / np.sqrt(width)
    inputs = (generator.normal(size=(tokens, width)) @ mix) * np.exp(generator.normal(size=width))
    weight = generator.normal(size=(rows, width))
    moment = inputs.T @ inputs / tokens
    return weight.astype(np.float32).astype(np.float64), moment.astype(np.float32).astype(np.float64)


def sparsified(weight: np.ndarray, moment: np.ndarray, **how: object) -> np.ndarray:
    done = sparsify_weight(mx.array(weight.astype(np.float32)), mx.array(moment.astype(np.float32)), **how)  # type: ignore[arg-type]
    return np.array(done.weight).astype(np.float64)


@given(
    st.integers(0, 2**31),
    st.integers(1, 24),
    st.sampled_from([4, 12, 40, 132, 200]),
    st.sampled_from([0.0, 0.3, 0.5, 0.8]),
    st.sampled_from([None, (2, 4), (1, 4), (3, 4)]),
)
@settings(max_examples=25, deadline=None)
def test_sparsify_weight_reaches_the_objective_of_the_published_loop(
    seed: int, rows: int, width: int, sparsity: float, groups: tuple[int, int] | None
) -> None:
    weight, moment = layer(seed, rows, width, 3 * width)
    expected = oracle.sparsegpt(weight, moment, sparsity, groups)
    found = sparsified(weight, moment, sparsity=sparsity, groups=groups)
    assert (found == 0).sum() == (expected == 0).sum()
    reached, wanted = (oracle.layer_objective(one, weight, moment) for one in (found, expected))
    assert reached <= 1.01 * wanted + 1e-9 * oracle.layer_objective(0 * weight, weight, moment)


@pytest.mark.parametrize("groups", [None, (2, 4), (4, 8)])
def test_sparsify_weight_removes_and_moves_what_the_published_loop_does(groups: tuple[int, int] | None) -> None:
    weight, moment = layer(7, 48, 264, 900)
    expected = oracle.sparsegpt(weight, moment, 0.6, groups)
    found = sparsified(weight, moment, sparsity=0.6, groups=groups)
    np.testing.assert_array_equal(found == 0, expected == 0)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_ties_are_broken_by_index() -> None:
    done = sparsified(np.ones((2, 4)), np.eye(4), sparsity=0.5)
    np.testing.assert_array_equal(done == 0, [[True, True, True, True], [False, False, False, False]])
    done = sparsified(np.ones((2, 4)), np.eye(4), groups=(2, 4))
    np.testing.assert_array_equal(done == 0, [[True, True, False, False]] * 2)


def test_pattern_of_three_spans_no_two_blocks() -> None:
    weight, moment = layer(3, 8, 258, 600)
    found = sparsified(weight, moment, groups=(1, 3))
    assert ((found == 0).reshape(8, -1, 3).sum(axis=-1) == 1).all()


def test_inverse_factor_is_that_of_the_damped_inverse() -> None:
    _, moment = layer(5, 1, 50, 200)
    factor, is_dead, damping = inverse_factor(mx.array(moment.astype(np.float32)), 0.01)
    upper = np.array(factor, dtype=np.float64)
    damped = moment + 0.01 * np.mean(np.diag(moment)) * np.eye(50)
    np.testing.assert_array_equal(upper, np.triu(upper))
    np.testing.assert_allclose(upper.T @ upper @ damped, np.eye(50), atol=1e-3)
    assert damping == 0.01
    assert not is_dead.any()


def test_singular_hessian_is_damped_more_and_says_so() -> None:
    inputs = np.random.default_rng(0).normal(size=(3, 40))
    moment = mx.array((inputs.T @ inputs).astype(np.float32))
    weight = mx.random.normal((6, 40), key=mx.random.key(0))
    done = sparsify_weight(weight, moment, damping=0.0)
    assert done.damping >= 0.01
    assert mx.isfinite(done.weight).all()
    assert (done.weight == 0).sum() == 120
    assert sparsify_weight(weight, mx.eye(40), damping=0.0).damping == 0.0


def test_input_that_was_never_there_loses_its_weights() -> None:
    weight, moment = layer(1, 6, 16, 60)
    moment[5], moment[:, 5] = 0.0, 0.0
    found = sparsified(weight, moment, sparsity=0.3)
    assert (found[:, 5] == 0).all()
    np.testing.assert_array_equal(found == 0, oracle.sparsegpt(weight, moment, 0.3) == 0)


def test_no_inputs_at_all_is_no_division_by_zero() -> None:
    assert (sparsified(np.ones((2, 4)), np.zeros((4, 4))) == 0).all()


def test_wrong_moment_and_pattern_are_one_line() -> None:
    with pytest.raises(ShapeError, match=r"^sparsegpt: second_moment has shape \(3, 3\)"):
        sparsify_weight(mx.ones((2, 4)), mx.eye(3))
    with pytest.raises(UsageError, match="pattern 2:4 does not divide the 6 inputs"):
        sparsify_weight(mx.ones((2, 6)), mx.eye(6), groups=(2, 4))


def test_second_moments_are_those_of_the_counted_tokens(tiny: ChatModel) -> None:
    walk = Walk(tiny, batch_sequences(SEQUENCES, first_counted=[3, 0, 10], tokens_per_batch=100))
    names = tiny.layout(0).linear_names
    moments, squares = second_moments(walk, names).values, input_squares(walk, names).values
    count = sum(batch.counted.sum().item() for batch in walk.batches)
    assert set(moments) == set(names)
    for name in names:
        np.testing.assert_allclose(np.array(mx.diag(moments[name])), np.array(squares[name]) / count, rtol=1e-4)
    assert moments["self_attn.q_proj"] is moments["self_attn.v_proj"]


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_sparsegpt_beats_wanda_and_magnitude_on_every_layer(model_folder: Callable[..., Path], pattern: str) -> None:
    """Layer by layer on the same inputs: those of the dense model's first block, and of the pruned blocks later on."""
    model = load(model_folder())
    walk = Walk(model, batch_sequences(SEQUENCES))
    names = model.layout(0).linear_names
    groups = None if pattern == "unstructured" else (2, 4)
    while not walk.is_done:
        moments = second_moments(walk, names).values
        for name in names:
            linear = model.linear(walk.layer, name)
            weight, moment = (np.array(one, dtype=np.float64) for one in (linear.weight, moments[name]))
            norms = np.sqrt(np.diag(moment))

            def cut(scores: np.ndarray, weight: np.ndarray = weight) -> np.ndarray:
                mask = oracle.n_of_m_mask(scores, 2, 4) if groups else oracle.lowest_mask(scores, weight.shape[1] // 2)
                return np.where(mask, 0.0, weight)

            done = sparsify_weight(linear.weight, moments[name], groups=groups)
            reached, textbook, wanda, magnitude = (
                oracle.layer_objective(one, weight, moment)
                for one in (
                    np.array(done.weight),
                    oracle.sparsegpt(weight, moment, 0.5, groups),
                    cut(np.abs(weight) * norms),
                    cut(np.abs(weight)),
                )
            )
            place = f"{walk.layer}.{name}"
            assert reached <= 1.01 * textbook, place
            assert reached < min(wanda, magnitude), place
            linear.weight = done.weight
        walk.advance()


def test_prune_model_by_sparsegpt_is_the_kernel_on_a_walk_through_pruned_blocks(
    model_folder: Callable[..., Path],
) -> None:
    pruned, model = load(model_folder()), load(model_folder())
    report = prune_model(pruned, batch_sequences(SEQUENCES), method="sparsegpt", sparsity=0.6)
    walk = Walk(model, batch_sequences(SEQUENCES))
    while not walk.is_done:
        moments = second_moments(walk, model.layout(0).linear_names).values
        for name in model.layout(0).linear_names:
            linear = model.linear(walk.layer, name)
            linear.weight = sparsify_weight(linear.weight, moments[name], sparsity=0.6).weight
            np.testing.assert_array_equal(np.array(linear.weight), np.array(pruned.linear(walk.layer, name).weight))
        walk.advance()
    assert report.notes == []


def test_short_calibration_is_said(tiny: ChatModel) -> None:
    (note,) = prune_model(tiny, batch_sequences([[5, 6, 7]]), method="sparsegpt").notes
    assert note.startswith("sparsegpt: 3 calibration tokens are fewer than the 64 inputs")
