"""The walk equals the network's own forward pass, padding changes nothing, and taps do not outlive it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten

import oracle
from aird_mlx.activations import (
    TokenBatch,
    Walk,
    batch_sequences,
    flatten_counted,
    run_head,
    side_by_side,
    spread_rows,
    take_positions,
    thin_batches,
)
from aird_mlx.errors import ModelError
from aird_mlx.model import ChatModel, Tap, load

SEQUENCES = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], [20, 21, 22], [30, 31, 32, 33, 34, 35, 36], [40]]
SLIDING: dict[str, Any] = {
    "layer_types": ["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
    "sliding_window": 3,
}
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    ("mistral", {}),
    ("mistral", SLIDING),
    ("qwen2", {}),
    ("qwen3", {}),
]


def has_taps(model: ChatModel) -> bool:
    return any(isinstance(block, Tap) for block in model.blocks) or any(
        isinstance(getattr(owner, name.rpartition(".")[2]), Tap)
        for block in model.blocks
        for name in model.layout(0).linear_names
        for owner in [getattr(block, name.partition(".")[0])]
    )


def run_tapped(model: ChatModel) -> mx.array:
    assert has_taps(model)
    return model.network(mx.array([[1, 2]]))


@pytest.mark.parametrize(("model_type", "changes"), MODELS)
def test_walk_and_head_equal_the_networks_own_logits(
    model_folder: Callable[..., Path], model_type: str, changes: dict[str, Any]
) -> None:
    model = load(model_folder(model_type, **changes))
    walk = Walk(model, batch_sequences(SEQUENCES, tokens_per_batch=16))
    assert len(walk.batches) > 1
    walk.move_to(len(model.blocks))
    assert walk.is_done
    for batch, hidden in zip(walk.batches, walk.hidden, strict=True):
        logits = run_head(model, hidden)
        for row, (index, length) in enumerate(zip(batch.order, batch.lengths, strict=True)):
            expected = model.network(mx.array([SEQUENCES[index]]))[0]
            np.testing.assert_allclose(np.array(logits[row, :length]), np.array(expected), atol=2e-5)


def test_walk_passes_the_sliding_window_of_a_block(model_folder: Callable[..., Path]) -> None:
    long = [list(range(3, 40))]
    with_window = load(model_folder("mistral", **SLIDING))
    assert [block.use_sliding for block in with_window.blocks] == [False, True, False, True]
    walk = Walk(with_window, batch_sequences(long))
    walk.move_to(4)
    windowed = np.array(walk.hidden[0])
    assert with_window.network.model.sliding_window == 3
    full = load(model_folder("mistral", seed=0))
    plain = Walk(full, batch_sequences(long))
    plain.move_to(4)
    assert np.abs(windowed - np.array(plain.hidden[0])).max() > 1e-3, (
        "the window must matter for this test to mean anything"
    )


def test_walk_stands_at_the_input_of_each_block(tiny: ChatModel) -> None:
    reference = oracle.Llama(dict(tree_flatten(tiny.network.parameters())), tiny.config)
    walk = Walk(tiny, batch_sequences(SEQUENCES))
    states = [reference.hidden(ids) for ids in SEQUENCES]
    for layer in range(5):
        walk.move_to(layer)
        for row, (index, length) in enumerate(zip(walk.batches[0].order, walk.batches[0].lengths, strict=True)):
            np.testing.assert_allclose(np.array(walk.hidden[0][row, :length]), states[index][layer], atol=1e-5)


def test_inputs_of_linears_equal_a_numpy_forward(tiny: ChatModel) -> None:
    reference = oracle.Llama(dict(tree_flatten(tiny.network.parameters())), tiny.config)
    walk = Walk(tiny, batch_sequences([SEQUENCES[0]]))
    walk.move_to(2)
    expected: dict[str, Any] = {}
    reference.block(2, reference.hidden(SEQUENCES[0])[2], expected.__setitem__)
    seen = walk.inputs_of(0, tiny.layout(0).linear_names)
    assert set(seen) == set(expected)
    for name, value in seen.items():
        np.testing.assert_allclose(np.array(value[0]), expected[name], atol=1e-5, err_msg=name)


def test_padding_changes_no_real_token(tiny: ChatModel) -> None:
    alone, padded = Walk(tiny, batch_sequences([SEQUENCES[1]])), Walk(tiny, batch_sequences(SEQUENCES))
    alone.move_to(4)
    padded.move_to(4)
    row = padded.batches[0].order.index(1)
    np.testing.assert_allclose(np.array(padded.hidden[0][row, :3]), np.array(alone.hidden[0][0]), atol=1e-6)


def test_run_block_takes_tiled_rows(tiny: ChatModel) -> None:
    walk = Walk(tiny, batch_sequences([SEQUENCES[0], SEQUENCES[2]]))
    tiled = walk.run_block(0, mx.concatenate([walk.hidden[0]] * 3))
    np.testing.assert_allclose(np.array(tiled), np.array(mx.concatenate([walk.run_block(0)] * 3)), atol=1e-6)


def test_walk_and_head_leave_no_tap_behind(tiny: ChatModel) -> None:
    walk = Walk(tiny, batch_sequences(SEQUENCES))
    walk.inputs_of(0, tiny.layout(0).linear_names)
    run_head(tiny, walk.hidden[0])
    assert not has_taps(tiny)


def test_taps_are_gone_after_an_exception(tiny: ChatModel) -> None:
    before, linear = list(tiny.blocks), tiny.linear(1, "mlp.down_proj")

    def fail(*_: Any) -> mx.array:
        raise ZeroDivisionError

    for taps in (tiny.block_taps(fail), tiny.linear_taps(1, {"mlp.down_proj": fail})):
        with pytest.raises(ZeroDivisionError), taps:
            run_tapped(tiny)
    assert not has_taps(tiny)
    assert all(now is then for now, then in zip(tiny.blocks, before, strict=True))
    assert tiny.linear(1, "mlp.down_proj") is linear


def test_taps_that_fail_to_be_placed_undo_those_already_placed(tiny: ChatModel) -> None:
    def pass_on(linear: nn.Module, value: mx.array) -> mx.array:
        return linear(value)

    taps = {"mlp.down_proj": pass_on, "mlp.no_such_proj": pass_on}
    with pytest.raises(AttributeError), tiny.linear_taps(0, taps):
        raise AssertionError("the body must not run")
    assert not has_taps(tiny)


def test_weights_stay_out_of_the_taps_reach(tiny: ChatModel) -> None:
    names = {name for name, _ in tree_flatten(tiny.network.parameters())}
    with tiny.linear_taps(0, {"mlp.down_proj": lambda linear, value: linear(value)}):
        tiny.network(mx.array([[1, 2]]))
    assert {name for name, _ in tree_flatten(tiny.network.parameters())} == names


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named_by_block(tiny: ChatModel, value: float) -> None:
    linear = tiny.linear(2, "mlp.down_proj")
    linear.weight = mx.where(mx.arange(64) == 3, value, linear.weight)
    walk = Walk(tiny, batch_sequences(SEQUENCES))
    walk.move_to(2)
    with pytest.raises(ModelError, match=r"^activations: block 2 gives values that are not finite") as raised:
        walk.advance()
    assert "\n" not in str(raised.value)


def test_large_but_finite_float16_activations_are_let_through(tiny: ChatModel) -> None:
    tiny.network.set_dtype(mx.float16)
    embedding = tiny.network.model.embed_tokens
    embedding.weight = embedding.weight + mx.array(200.0, dtype=mx.float16)
    walk = Walk(tiny, batch_sequences([list(range(3, 60))]))
    assert walk.hidden[0].dtype == mx.float16
    walk.move_to(4)
    assert walk.hidden[0].astype(mx.float32).sum().item() > 65504, "the sum must overflow float16 to test anything"


@given(st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=12), min_size=1, max_size=12), st.integers(1, 40))
def test_batches_hold_every_sequence_once_within_the_limit(sequences: list[list[int]], limit: int) -> None:
    batches = batch_sequences(sequences, tokens_per_batch=limit)
    found: dict[int, list[int]] = {}
    for batch in batches:
        ids, counted = np.array(batch.ids), np.array(batch.counted)
        assert ids.size <= limit or ids.shape[0] == 1
        for row, (index, length) in enumerate(zip(batch.order, batch.lengths, strict=True)):
            assert index not in found
            found[index] = ids[row, :length].tolist()
            assert not ids[row, length:].any()
            assert counted[row].tolist() == [1.0] * length + [0.0] * (ids.shape[1] - length)
    assert [found[index] for index in range(len(sequences))] == sequences


def test_batches_count_from_the_given_token_on() -> None:
    (batch,) = batch_sequences([[1, 2, 3, 4], [5, 6]], first_counted=[2, 0])
    assert batch.order == (1, 0)
    assert batch.counted.tolist() == [[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]


def test_batches_know_where_each_answer_opens() -> None:
    (batch,) = batch_sequences([[1, 2, 3, 4], [5, 6], [7, 8, 9]], first_answered=[2, 0, 1])
    assert batch.order == (1, 2, 0)
    assert batch.opens == (-1, 0, 1)
    assert batch_sequences([[1, 2]])[0].opens == (-1,)


def rows_of(batches: list[TokenBatch]) -> list[tuple[int, int, list[int], list[float], int]]:
    """Everything known of each sequence, in the order of the batches."""
    return [
        (batch.order[row], batch.lengths[row], batch.ids[row].tolist(), batch.counted[row].tolist(), batch.opens[row])
        for batch in batches
        for row in range(len(batch.lengths))
    ]


@given(
    st.lists(st.lists(st.integers(1, 99), min_size=2, max_size=12), min_size=1, max_size=40),
    st.integers(1, 300),
    st.integers(12, 60),
)
def test_thinned_batches_are_about_so_many_tokens_of_whole_sequences_in_order(
    sequences: list[list[int]], tokens: int, limit: int
) -> None:
    firsts = [len(ids) // 2 for ids in sequences]
    batches = batch_sequences(sequences, first_answered=firsts, tokens_per_batch=limit)
    rows, kept = rows_of(batches), rows_of(thin_batches(batches, tokens))
    remaining = iter(rows)
    assert all(row in remaining for row in kept), "a part of what there was, in its order"
    total, found = (sum(int(sum(row[3])) for row in of) for of in (rows, kept))
    if tokens >= total:
        assert kept == rows
    else:
        longest = max(map(len, sequences))
        assert abs(found - tokens) <= 2 * longest
        assert abs(len(kept) - len(rows) * tokens / total) < 1.001
    places = [(index, row) for index, chosen in spread_rows(batches, tokens) for row in chosen]
    assert [rows_of([batches[index]])[row] for index, row in places] == kept


def test_thinning_counts_only_tokens_that_count() -> None:
    batches = batch_sequences([[1, 2, 3, 4]] * 10, first_counted=[2] * 10)
    assert [batch.ids.shape for batch in thin_batches(batches, 10)] == [(5, 4)]
    assert thin_batches([], 10) == []


def test_take_positions_counts_from_each_sequences_end() -> None:
    hidden = mx.arange(2 * 4 * 1).reshape(2, 4, 1)
    assert take_positions(hidden, [2, 4], [-2, -1])[:, :, 0].tolist() == [[0, 1], [6, 7]]


def test_flatten_counted_zeroes_what_does_not_count() -> None:
    values = mx.ones((1, 3, 2)).astype(mx.float16)
    flat = flatten_counted(values, mx.array([[0.0, 1.0, 0.0]]))
    assert flat.dtype == mx.float32
    assert flat.tolist() == [[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_pieces_of_work_give_the_same_on_any_number_of_lanes(monkeypatch: pytest.MonkeyPatch, lanes: int) -> None:
    monkeypatch.setattr("aird_mlx.activations.lanes.lane_count", lambda: lanes)
    streams: set[str] = set()

    def piece(number: int) -> Iterator[mx.array]:
        streams.add(str(mx.default_stream(mx.default_device())))
        value = mx.full((50, 50), number / 50)
        for _ in range(number):
            value = value @ value
            yield value

    given = side_by_side([piece(number) for number in (4, 1, 3, 2, 1)])
    for number, array in zip((4, 1, 3, 2, 1), given, strict=True):
        np.testing.assert_allclose(np.array(array), np.full((50, 50), number ** (2**number) / 50), rtol=1e-5)
    assert len(streams) == lanes


def test_what_a_piece_of_work_raises_is_raised() -> None:
    def broken() -> Iterator[mx.array]:
        yield mx.ones(3)
        raise ModelError("walk: no.")

    before = mx.default_stream(mx.default_device())
    with pytest.raises(ModelError, match=r"^walk: no\.$"):
        side_by_side([broken(), iter([mx.ones(3)])])
    assert mx.default_stream(mx.default_device()) == before
