"""Each row of the table against the running model: its linears exist, share inputs as claimed, and writers write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest

from aird_mlx.activations import Walk, batch_sequences
from aird_mlx.architectures import TABLE, architecture_of
from aird_mlx.errors import ModelError
from aird_mlx.model import ChatModel, load

ROWS = pytest.mark.parametrize("model_type", TABLE)


@pytest.fixture
def model(model_folder: Callable[..., Path], model_type: str) -> ChatModel:
    return load(model_folder(model_type))


@ROWS
def test_row_lists_every_linear_of_a_block(model: ChatModel, model_type: str) -> None:
    found = {name for name, module in model.blocks[0].named_modules() if isinstance(module, nn.Linear)}
    assert set(TABLE[model_type].linear_names) == found
    assert len(TABLE[model_type].linear_names) == len(found)


@ROWS
def test_members_of_a_group_share_their_input_and_groups_do_not(model: ChatModel, model_type: str) -> None:
    walk = Walk(model, batch_sequences([[5, 6, 7, 8]]))
    inputs = walk.inputs_of(0, TABLE[model_type].linear_names)
    firsts = []
    for group in TABLE[model_type].linears:
        assert all(mx.array_equal(inputs[name], inputs[group[0]]).item() for name in group)
        firsts.append(inputs[group[0]])
    pairs = [(one, other) for index, one in enumerate(firsts) for other in firsts[:index]]
    assert not any(one.shape == other.shape and mx.array_equal(one, other).item() for one, other in pairs)


@ROWS
def test_linears_are_listed_in_the_order_data_passes_them(model: ChatModel, model_type: str) -> None:
    seen: list[str] = []

    def note(name: str) -> Callable[[nn.Module, mx.array], mx.array]:
        def call(linear: nn.Module, value: mx.array) -> mx.array:
            seen.append(name)
            return linear(value)

        return call

    with model.linear_taps(0, {name: note(name) for name in TABLE[model_type].linear_names}):
        model.network(mx.array([[5, 6]]))
    order = {name: number for number, group in enumerate(TABLE[model_type].linears) for name in group}
    assert [order[name] for name in seen] == sorted(order[name] for name in seen)
    assert len(seen) == len(order)


@ROWS
def test_writers_are_exactly_what_the_residual_stream_gets_from_a_block(model: ChatModel, model_type: str) -> None:
    walk = Walk(model, batch_sequences([[5, 6, 7]]))
    written: list[mx.array] = []

    def keep(linear: nn.Module, value: mx.array) -> mx.array:
        written.append(linear(value))
        return written[-1]

    with model.linear_taps(0, dict.fromkeys(TABLE[model_type].writers, keep)):
        output = walk.run_block(0)
    assert mx.allclose(output, walk.hidden[0] + sum(written[1:], written[0]), atol=1e-6).item()


@ROWS
def test_embedding_path_names_the_embedding(model: ChatModel, model_type: str) -> None:
    module = model.network
    for name in TABLE[model_type].embedding.split("."):
        module = getattr(module, name)
    walk = Walk(model, batch_sequences([[5, 6]]))
    assert mx.array_equal(module(mx.array([[5, 6]])), walk.hidden[0]).item()


def test_type_without_a_row_is_refused_with_the_supported_ones() -> None:
    with pytest.raises(ModelError, match=r"^model: model type 'mamba' is not supported yet; one of llama, ") as raised:
        architecture_of("mamba")
    assert all(name in str(raised.value) for name in TABLE)
