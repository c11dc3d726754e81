"""Every family: the table against the running model, and every stage on it."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from mlx_lm.utils import _get_classes

from aird_mlx.activations import Walk, batch_sequences, run_head
from aird_mlx.architectures import Architecture, architecture_of
from aird_mlx.errors import ModelError
from aird_mlx.model import ChatModel, check_writers, first_of_each_kind, is_linear
from aird_mlx.model.discovery import discover
from families import CHANGES, tiny_config

FAMILIES = pytest.mark.parametrize("model_type", CHANGES)
SEQUENCES = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [20, 21, 22], [30, 31, 32, 33, 34, 35, 36]]


@pytest.fixture(autouse=True, scope="module")
def hf_olmo() -> Iterator[None]:
    """mlx-lm's file for olmo ends the process where this package, of which it uses nothing, is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "hf_olmo", types.ModuleType("hf_olmo"))
        yield


def make_model(model_type: str, seed: int = 0, row: Architecture | None = None) -> ChatModel:
    """A random tiny model in memory, without a tokenizer; every parameter random, norms and biases too."""
    config = tiny_config(model_type)
    mx.random.seed(seed)
    model_class, arguments = _get_classes(config)
    network = model_class(arguments.from_dict(config))
    network.update(tree_map(lambda array: array + 0.1 * mx.random.normal(array.shape), network.parameters()))
    mx.eval(network.parameters())
    row = row or architecture_of(config)
    assert row is not None
    return ChatModel(network, None, config, model_type, Path(), row)


def parameters(model: ChatModel) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in tree_flatten(model.network.parameters())}


@FAMILIES
def test_writers_explain_what_every_block_changes(model_type: str) -> None:
    model = make_model(model_type)
    before = parameters(model)
    assert check_writers(model, range(len(model.blocks))) < 1e-6
    for name, value in parameters(model).items():
        np.testing.assert_array_equal(value, before[name])
    assert len({model.layout(block).kind for block in range(len(model.blocks))}) >= len(first_of_each_kind(model)) / 2


@FAMILIES
def test_row_names_every_linear_of_every_block(model_type: str) -> None:
    model = make_model(model_type)
    for block, module in enumerate(model.blocks):
        layout = model.layout(block)
        named = [*layout.linear_names, *(name for part in layout.parts for name in part.kept)]
        found = {name for name, one in module.named_modules() if is_linear(one)}
        assert len(set(named)) == len(named)
        assert found <= set(named), found - set(named)
        assert set(layout.linear_names) <= found


@FAMILIES
def test_members_of_a_group_share_their_input(model_type: str) -> None:
    model = make_model(model_type)
    for block in first_of_each_kind(model):
        walk = Walk(model, batch_sequences(SEQUENCES))
        walk.move_to(block)
        for group in walk.layout.groups:
            if walk.layout.is_expert(group[0]):
                inputs = {name: one.values for name, one in walk.routed_inputs_of(0, group).items()}
            else:
                inputs = walk.inputs_of(0, group)
            assert inputs.keys() == set(group)
            assert all(mx.array_equal(inputs[name], inputs[group[0]]).item() for name in group)


@FAMILIES
def test_discovery_finds_the_writers_of_the_table(model_type: str) -> None:
    known = make_model(model_type)
    if known.architecture.carried:
        with pytest.raises(ModelError, match=rf"^model: model type '{model_type}' is not in the table, and its blocks"):
            discover(known.network, known.config)
        return
    found = make_model(model_type, row=discover(known.network, known.config))
    assert check_writers(found, range(len(found.blocks))) < 1e-6
    assert (found.architecture.blocks, found.architecture.embedding) == (
        known.architecture.blocks,
        known.architecture.embedding,
    )
    for block in range(len(known.blocks)):
        first, second = ({part.writer: part.norm for part in one.layout(block).parts} for one in (found, known))
        assert first == second


@FAMILIES
def test_walk_and_head_equal_the_networks_own_logits(model_type: str) -> None:
    model = make_model(model_type)
    walk = Walk(model, batch_sequences(SEQUENCES))
    walk.move_to(len(model.blocks))
    logits = run_head(model, walk.hidden[0])
    for row, (index, length) in enumerate(zip(walk.batches[0].order, walk.batches[0].lengths, strict=True)):
        expected = model.network(mx.array([SEQUENCES[index]]))[0]
        scale = float(mx.abs(expected).max().item())
        np.testing.assert_allclose(np.array(logits[row, :length]), np.array(expected), atol=1e-4 * max(scale, 1.0))
