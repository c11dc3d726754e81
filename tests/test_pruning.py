"""Masks against brute force, counts and patterns in the weights, and the Wanda walk against a numpy walk."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

import oracle
from aird_mlx.activations import TokenBatch, batch_sequences
from aird_mlx.errors import PromptError, ShapeError, UsageError
from aird_mlx.model import ChatModel, load
from aird_mlx.pruning import (
    check_pruning,
    check_words,
    lowest_mask,
    magnitude_scores,
    n_of_m_mask,
    parse_pattern,
    prune_model,
    wanda_scores,
)

SEQUENCES = [list(range(3, 20)), [40, 41, 42, 43, 44], [7] * 9, [100, 5, 200, 11, 77, 250, 31, 8, 9, 64, 65]]


@st.composite
def score_matrices(draw: st.DrawFn, widths: st.SearchStrategy[int]) -> np.ndarray:
    """Score matrices full of ties: few different values, zeros among them."""
    rows, width, seed = draw(st.integers(1, 6)), draw(widths), draw(st.integers(0, 2**31))
    levels = draw(st.sampled_from([1, 2, 3, 1000]))
    generator = np.random.default_rng(seed)
    return (generator.integers(0, levels, (rows, width)) / 7).astype(np.float32)


def calibration() -> list[TokenBatch]:
    return batch_sequences(SEQUENCES, first_counted=[0, 2, 0, 4], tokens_per_batch=24)


def masks_of(model: ChatModel) -> dict[str, np.ndarray]:
    return {f"{block}.{name}": np.array(linear.weight) == 0 for block, name, linear in model.linears()}


@given(score_matrices(st.integers(1, 40)), st.floats(0, 0.999))
@settings(max_examples=60, deadline=None)
def test_lowest_mask_equals_sorting_by_score_then_index(scores: np.ndarray, sparsity: float) -> None:
    mask = np.array(lowest_mask(mx.array(scores), sparsity))
    removed = int(scores.shape[1] * sparsity + 1e-9)
    np.testing.assert_array_equal(mask, oracle.lowest_mask(scores.astype(np.float64), removed))


@given(
    score_matrices(st.sampled_from([4, 8, 16, 24, 48])),
    st.sampled_from([(1, 2), (2, 4), (3, 4), (1, 8), (4, 8), (7, 24)]),
)
@settings(max_examples=60, deadline=None)
def test_n_of_m_mask_equals_sorting_each_group(scores: np.ndarray, pattern: tuple[int, int]) -> None:
    if scores.shape[1] % pattern[1]:
        return
    mask = np.array(n_of_m_mask(mx.array(scores), *pattern))
    np.testing.assert_array_equal(mask, oracle.n_of_m_mask(scores.astype(np.float64), *pattern))


@pytest.mark.parametrize(("sparsity", "width", "removed"), [(0.7, 10, 7), (0.3, 10, 3), (0.29, 100, 29), (0.0, 8, 0)])
def test_lowest_mask_removes_the_exact_count_in_spite_of_float_fractions(
    sparsity: float, width: int, removed: int
) -> None:
    mask = lowest_mask(mx.random.normal((5, width), key=mx.random.key(1)) ** 2, sparsity)
    assert mask.sum(axis=1).tolist() == [removed] * 5


@given(score_matrices(st.integers(1, 40)), st.floats(0, 0.999))
@settings(max_examples=40, deadline=None)
def test_lowest_mask_of_a_matrix_equals_sorting_all_of_it(scores: np.ndarray, sparsity: float) -> None:
    mask = np.array(lowest_mask(mx.array(scores), sparsity, scope="matrix"))
    removed = int(scores.size * sparsity + 1e-9)
    expected = oracle.lowest_mask(scores.astype(np.float64).reshape(1, -1), removed).reshape(scores.shape)
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("method", ["wanda", "magnitude", "random"])
def test_scope_matrix_takes_the_fraction_of_each_linear_not_of_each_row(tiny: ChatModel, method: str) -> None:
    result = prune_model(tiny, calibration(), method=method, sparsity=0.55, scope="matrix")
    assert all(one.sparsity == int(one.weights * 0.55) / one.weights for one in result.tensors)
    rows = np.concatenate([mask.mean(axis=1) for mask in masks_of(tiny).values()])
    assert rows.std() > 0.01


def test_random_pruning_is_the_seeds_and_knows_no_weight(model_folder: Callable[..., Path]) -> None:
    masks = []
    for seed in (0, 0, 1):
        model = load(model_folder())
        prune_model(model, [], method="random", sparsity=0.5, seed=seed)
        masks.append(masks_of(model))
    assert all((masks[0][name] == masks[1][name]).all() for name in masks[0])
    assert not any((masks[0][name] == masks[2][name]).all() for name in masks[0])
    assert not (masks[0]["0.self_attn.q_proj"] == masks[0]["1.self_attn.q_proj"]).all()


def test_report_counts_every_tensor_as_it_is_in_the_weights(tiny: ChatModel) -> None:
    result = prune_model(tiny, calibration(), method="sparsegpt", sparsity=0.6)
    counted = masks_of(tiny)
    assert {f"{one.block}.{one.name}": one.sparsity for one in result.tensors} == {
        name: mask.mean() for name, mask in counted.items()
    }
    zeros, weights = (sum(getattr(mask, what) if what == "size" else mask.sum() for mask in counted.values())
                      for what in ("sum", "size"))  # fmt: skip
    assert result.sparsity == pytest.approx(zeros / weights)
    assert result.block_sparsity()[2] == pytest.approx(result.sparsity, abs=1e-3)
    assert {one.damping for one in result.tensors} == {0.01}


def test_pruning_again_says_that_there_were_zeros(tiny: ChatModel) -> None:
    assert prune_model(tiny, [], method="magnitude", sparsity=0.5).notes == []
    (note,) = prune_model(tiny, [], method="magnitude", sparsity=0.6).notes
    assert note.startswith("50.0%")


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_no_calibration_is_one_line_that_says_how_much_is_needed(tiny: ChatModel, method: str) -> None:
    with pytest.raises(PromptError, match=rf"^calibration: 0 tokens; {method} needs some, best 64 or more"):
        prune_model(tiny, [], method=method)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scope": "block"}, "scope is 'block'"),
        ({"scope": "matrix", "pattern": "2:4"}, "pattern 2:4 with scope matrix"),
        ({"scope": "matrix", "method": "sparsegpt"}, "scope matrix with sparsegpt"),
        ({"allocation": "fair"}, "allocation is 'fair'"),
        ({"allocation": "owl", "pattern": "2:4"}, "pattern 2:4 with allocation owl"),
    ],
)
def test_words_that_exclude_each_other_are_refused_in_one_line(changes: dict[str, str], words: str) -> None:
    given = {"method": "wanda", "sparsity": 0.5, "pattern": "unstructured", "scope": "row", "allocation": "uniform"}
    with pytest.raises(UsageError, match=words) as raised:
        check_words(**{**given, **changes})  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_lowest_mask_breaks_ties_by_index_on_wide_rows() -> None:
    mask = np.array(lowest_mask(mx.zeros((2, 5000)), 0.3))
    assert mask[:, :1500].all()
    assert not mask[:, 1500:].any()


def test_wanda_scores_are_weight_times_norm_in_float32() -> None:
    weight = mx.array([[1.0, -2.0], [0.5, 4.0]]).astype(mx.bfloat16)
    scores = wanda_scores(weight, mx.array([3.0, 0.5]))
    assert scores.dtype == mx.float32
    assert scores.tolist() == [[3.0, 1.0], [1.5, 2.0]]
    assert magnitude_scores(weight).tolist() == [[1.0, 2.0], [0.5, 4.0]]


def test_wanda_scores_refuse_norms_of_another_width() -> None:
    with pytest.raises(ShapeError, match=r"^wanda: input_norm has shape \(4,\); weight \(4, 8\) needs \(8,\)"):
        wanda_scores(mx.zeros((4, 8)), mx.zeros(4))


@pytest.mark.parametrize("pattern", ["", "2", "4:2", "4:4", "0:4", "-1:4", "a:b", "2:4:8", "²:4", "2.0:4", "half"])
def test_parse_pattern_refuses_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_pattern(pattern)
    assert repr(pattern) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_parse_pattern_reads_both_kinds() -> None:
    assert parse_pattern("unstructured") is None
    assert parse_pattern("4:8") == (4, 8)


@pytest.mark.parametrize("sparsity", [0.5, 0.7])
def test_wanda_removes_what_a_numpy_walk_removes(tiny: ChatModel, sparsity: float) -> None:
    width = {name: linear.weight.shape[1] for _, name, linear in tiny.linears()}
    assert set(width.values()) == {32, 64}
    expected = oracle.wanda_masks(
        dict(tree_flatten(tiny.network.parameters())),
        tiny.config,
        [(SEQUENCES[index], first) for index, first in enumerate([0, 2, 0, 4])],
        lambda scores: oracle.lowest_mask(scores, int(scores.shape[1] * sparsity + 1e-9)),
    )
    prune_model(tiny, calibration(), sparsity=sparsity)
    for name, mask in masks_of(tiny).items():
        np.testing.assert_array_equal(mask, expected[name], err_msg=name)


def test_wanda_with_a_pattern_removes_what_a_numpy_walk_removes(tiny: ChatModel) -> None:
    expected = oracle.wanda_masks(
        dict(tree_flatten(tiny.network.parameters())),
        tiny.config,
        [(SEQUENCES[index], first) for index, first in enumerate([0, 2, 0, 4])],
        lambda scores: oracle.n_of_m_mask(scores, 2, 4),
    )
    prune_model(tiny, calibration(), pattern="2:4")
    for name, mask in masks_of(tiny).items():
        np.testing.assert_array_equal(mask, expected[name], err_msg=name)


def test_magnitude_removes_the_smallest_weights_without_calibration(tiny: ChatModel) -> None:
    weights = {f"{block}.{name}": np.array(linear.weight, dtype=np.float64) for block, name, linear in tiny.linears()}
    result = prune_model(tiny, [], method="magnitude", sparsity=0.6)
    for name, mask in masks_of(tiny).items():
        removed = int(weights[name].shape[1] * 0.6)
        np.testing.assert_array_equal(mask, oracle.lowest_mask(np.abs(weights[name]), removed), err_msg=name)
    assert result.linears == 28


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_prune_model_touches_only_the_linears_it_counts(model_folder: Callable[..., Path], model_type: str) -> None:
    model = load(model_folder(model_type))
    before = {name: np.array(value) for name, value in tree_flatten(model.network.parameters())}
    result = prune_model(model, calibration(), sparsity=0.5)
    after = dict(tree_flatten(model.network.parameters()))
    pruned = {f"model.layers.{block}.{name}.weight" for block, name, _ in model.linears()}
    assert set(before) == set(after)
    for name, value in before.items():
        now = np.array(after[name])
        if name in pruned:
            assert ((now == 0).sum(axis=1) == value.shape[1] // 2).all(), name
            np.testing.assert_array_equal(now[now != 0], value[now != 0], err_msg=name)
        else:
            np.testing.assert_array_equal(now, value, err_msg=name)
    assert result.sparsity == model.sparsity() == 0.5


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8"])
@pytest.mark.parametrize("method", ["wanda", "magnitude", "sparsegpt", "random"])
def test_pattern_holds_in_every_group_of_the_weights(tiny: ChatModel, method: str, pattern: str) -> None:
    removed, group = (int(part) for part in pattern.split(":"))
    result = prune_model(tiny, calibration(), method=method, pattern=pattern)
    for name, mask in masks_of(tiny).items():
        assert (mask.reshape(mask.shape[0], -1, group).sum(axis=-1) == removed).all(), name
    assert result.sparsity == removed / group
    assert result.pattern == pattern


def test_prune_model_keeps_the_dtype_of_the_weights(tiny: ChatModel) -> None:
    tiny.network.set_dtype(mx.float16)
    prune_model(tiny, calibration(), sparsity=0.5)
    assert {linear.weight.dtype for _, _, linear in tiny.linears()} == {mx.float16}


def test_prune_model_reports_progress_block_by_block(tiny: ChatModel) -> None:
    seen: list[tuple[int, int]] = []
    prune_model(tiny, calibration(), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"method": "guess", "sparsity": 0.5, "pattern": "unstructured"},
            "'guess'; one of wanda, sparsegpt, magnitude",
        ),
        ({"method": "wanda", "sparsity": 1.0, "pattern": "unstructured"}, "sparsity is 1.0"),
        ({"method": "wanda", "sparsity": -0.1, "pattern": "unstructured"}, "sparsity is -0.1"),
        ({"method": "wanda", "sparsity": float("nan"), "pattern": "unstructured"}, "sparsity is nan"),
        ({"method": "wanda", "sparsity": 0.5, "pattern": "2:3"}, "does not divide the 32 inputs of self_attn.q_proj"),
        ({"method": "wanda", "sparsity": 0.5, "pattern": "4:2"}, "0 < N < M"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_line_before_anything_changes(
    tiny: ChatModel, settings: dict[str, object], words: str
) -> None:
    before = [np.array(linear.weight) for _, _, linear in tiny.linears()]
    for refuse in (lambda: check_pruning(tiny, **settings), lambda: prune_model(tiny, calibration(), **settings)):  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=f"^prune: .*{re.escape(words)}") as raised:
            refuse()
        assert "\n" not in str(raised.value)
        assert raised.value.exit_code == 2
    for (_, _, linear), weight in zip(tiny.linears(), before, strict=True):
        np.testing.assert_array_equal(np.array(linear.weight), weight)


def test_lowest_mask_refuses_a_sparsity_outside_its_range() -> None:
    with pytest.raises(UsageError, match=r"sparsity is 1\.5"):
        lowest_mask(mx.ones((1, 4)), 1.5)


def test_n_of_m_mask_refuses_a_width_it_does_not_divide() -> None:
    with pytest.raises(UsageError, match="pattern 2:4 does not divide the 6 inputs"):
        n_of_m_mask(mx.ones((1, 6)), 2, 4)
