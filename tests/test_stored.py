"""Quantized weights set aside: their values, what they are rounded to, and descents that see the rounding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from mlx_lm.models.switch_layers import QuantizedSwitchLinear

from aird_mlx.errors import ModelError
from aird_mlx.model import ChatModel, load, save
from aird_mlx.patch import LinearPatch, Patch, fold, patched, pruned_weights_back
from aird_mlx.pruning import prune_model
from aird_mlx.quantization import QuantizedWeight, load_quantized, quantize_model, restore_modules, set_aside_modules
from aird_mlx.repair.descent import descend
from family_models import FAMILIES, write_family

MODES = [("affine", 2), ("affine", 3), ("affine", 4), ("affine", 6), ("affine", 8), ("mxfp4", 4), ("mxfp8", 8)]


def quantized(model: ChatModel, mode: str = "affine", bits: int = 4, *, sparsity: float = 0.5) -> ChatModel:
    """A pruned model quantized in groups of 32, its weights set aside."""
    if sparsity:
        prune_model(model, [], method="random", sparsity=sparsity)
    origins = {model.path(block, name): linear.weight for block, name, linear in model.linears()}
    quantize_model(model, mode=mode, bits=bits, group_size=32)
    set_aside_modules(model, {path: weight != 0 for path, weight in origins.items()} if sparsity else {}, origins)
    return model


def codes_of(stored: object) -> np.ndarray:
    """Affine codes ``[out, in]``, unpacked bit by bit."""
    assert isinstance(stored, QuantizedWeight)
    words, bits = np.array(stored.module.weight), stored.module.bits
    stream = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little").reshape(len(words), -1, bits)
    return (stream * (1 << np.arange(bits))).sum(axis=-1)


@pytest.mark.parametrize(("mode", "bits"), MODES)
def test_network_computes_with_the_very_values_that_are_stored(
    tiny: ChatModel, tmp_path: Path, mode: str, bits: int
) -> None:
    model = quantized(tiny, mode, bits)
    ids = mx.array([[5, 17, 42, 8]])
    found = model.network(ids)
    size = model.bits_per_weight
    kept = {path: stored.kept for path, stored in model.stored.items()}
    restore_modules(model)
    assert any(isinstance(module, nn.QuantizedLinear) for module in model.network.modules())
    np.testing.assert_allclose(np.array(model.network(ids)), np.array(found), atol=2e-4)
    assert size == pytest.approx(model.bits_per_weight, rel=1e-9)
    save(model, tmp_path / "out")
    mlx_lm.load(str(tmp_path / "out"))
    again = load_quantized(tmp_path / "out", model, kept)
    assert mx.array_equal(again.network(ids), found).item()
    assert again.bits_per_weight == pytest.approx(size, rel=1e-9)


@pytest.mark.parametrize(("mode", "bits"), [("affine", 3), ("mxfp4", 4)])
def test_experts_are_set_aside_and_put_back_as_the_rest_is(
    model_folder: Callable[..., Path], tmp_path: Path, mode: str, bits: int
) -> None:
    changes = {**FAMILIES["qwen3_moe"], "hidden_size": 32, "moe_intermediate_size": 32, "num_hidden_layers": 2}
    model = load(write_family(tmp_path / "model", "qwen3_moe", changes))
    prune_model(model, [], method="magnitude", sparsity=0.5)
    kept = {model.path(block, name): linear.weight != 0 for block, name, linear in model.linears()}
    quantize_model(model, mode=mode, bits=bits, group_size=32)
    with pytest.raises(ModelError, match="is quantized already"):
        quantize_model(model, mode=mode, bits=bits, group_size=32)
    set_aside_modules(model, kept)
    name = "mlp.switch_mlp.down_proj"
    stored = model.stored[model.path(1, name)]
    assert mx.array_equal(stored.values(), model.linear(1, name).weight).item()
    change = mx.where(stored.kept, 0.1, 0.0)
    fold(model, Patch("refit", 1.0, 0.0, (LinearPatch(1, name, delta=change),)))
    wanted = stored.nearest(stored.origin + change)
    assert not mx.array_equal(wanted, stored.values()).item()
    restore_modules(model)
    save(model, tmp_path / "out")
    network, _ = mlx_lm.load(str(tmp_path / "out"))
    expert = network.layers[1].mlp.switch_mlp.down_proj
    assert isinstance(expert, QuantizedSwitchLinear)
    again = load(tmp_path / "out")
    np.testing.assert_allclose(np.array(again.linear(1, name).weight), np.array(wanted), atol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_nearest_is_the_nearest_code_of_the_group(tiny: ChatModel, bits: int) -> None:
    stored = quantized(tiny, "affine", bits).stored[tiny.path(1, "mlp.down_proj")]
    assert isinstance(stored, QuantizedWeight)
    weight = np.random.default_rng(bits).normal(size=(32, 64)) * 0.2
    scales, biases = (np.array(stored.module[part], dtype=np.float64) for part in ("scales", "biases"))
    levels = scales[..., None] * np.arange(2**bits) + biases[..., None]  # [out, group, code]
    distance = np.abs(weight.reshape(32, 2, 32, 1) - levels[:, :, None])
    wanted = np.take_along_axis(levels[:, :, None].repeat(32, 2), distance.argmin(axis=-1)[..., None], -1)
    found = np.array(stored.nearest(mx.array(weight.astype(np.float32))))
    np.testing.assert_allclose(found, wanted.reshape(32, 64), atol=1e-6)
    held = stored.holding(mx.array(weight.astype(np.float32)))
    np.testing.assert_array_equal(np.array(held.values()), found)
    np.testing.assert_array_equal(codes_of(held), distance.argmin(axis=-1).reshape(32, 64))


@pytest.mark.parametrize(("mode", "bits"), MODES)
def test_rounding_what_is_stored_changes_nothing_and_pruned_weights_stay_zero(
    tiny: ChatModel, mode: str, bits: int
) -> None:
    model = quantized(tiny, mode, bits)
    for block, name, linear in model.linears():
        stored = model.stored[model.path(block, name)]
        assert mx.array_equal(stored.nearest(stored.origin), stored.values()).item()
        assert mx.array_equal(stored.values(), linear.weight).item()
        moved = mx.where(stored.kept, 1.5 * stored.origin + 0.01, 0.0)
        assert not np.array(stored.holding(moved).values())[~np.array(stored.kept)].any()
    assert pruned_weights_back(model) == 0


def test_weights_that_rounding_made_zero_are_no_pruned_ones(tiny: ChatModel) -> None:
    model = quantized(tiny, "affine", 2)
    stored = model.stored[model.path(0, "mlp.up_proj")]
    zeros, kept = np.array(stored.values() == 0), np.array(stored.kept)
    assert kept.mean() == 0.5
    assert zeros[~kept].all()
    assert zeros[kept].mean() > 0.05
    dense = quantized(load(tiny.folder), "affine", 2, sparsity=0)
    assert all(bool(one.kept.all().item()) for one in dense.stored.values())


def test_a_change_of_less_than_half_a_step_adds_up_instead_of_vanishing(tiny: ChatModel) -> None:
    model = quantized(tiny, "affine", 4)
    stored = model.stored[model.path(1, "mlp.down_proj")]
    assert isinstance(stored, QuantizedWeight)
    step = np.abs(np.array(stored.module.scales)).min()
    change = mx.where(stored.kept, 0.2 * float(step), 0.0)
    patch = Patch("refit", 1.0, 0.0, (LinearPatch(1, "mlp.down_proj", delta=change),))
    before = np.array(stored.values())
    with patched(model, patch):
        trial = np.array(model.linear(1, "mlp.down_proj").weight)
    result = fold(model, patch)
    after = np.array(model.linear(1, "mlp.down_proj").weight)
    np.testing.assert_array_equal(trial, after)
    np.testing.assert_array_equal(after, np.array(model.stored[model.path(1, "mlp.down_proj")].values()))
    kept = np.array(stored.kept)
    assert 0.5 < (after - before)[kept].mean() / (0.2 * step) < 1.5
    assert np.array_equal(np.array(stored.nearest(mx.array(before) + change)), before), "added to the codes it vanishes"
    assert result.sparsity_lost == 0


def test_descent_with_the_rounding_beats_rounding_its_result(tiny: ChatModel) -> None:
    model = quantized(tiny, "affine", 2)
    stored = model.stored[model.path(2, "self_attn.o_proj")]
    assert isinstance(stored, QuantizedWeight)
    linear = model.linear(2, "self_attn.o_proj")
    generator = np.random.default_rng(0)
    inputs = mx.array((generator.standard_normal((256, 8)) @ generator.standard_normal((8, 32))).astype(np.float32))
    wanted = inputs @ load(tiny.folder).linear(2, "self_attn.o_proj").weight.T

    def error(index: int, rows: object) -> mx.array:
        return mx.square(linear(inputs) - wanted).mean()

    def error_of(weight: mx.array) -> float:
        return float(mx.square(inputs @ stored.nearest(weight).T - wanted).mean().item())

    settings = {"learning_rate": 0.05, "checked": [(0, [0])]}
    found = linear.weight
    unrounded = {"only": dataclasses.replace(stored, is_fixed=True)}
    plain = descend({"only": linear}, error, [(0, [0])] * 200, stored=unrounded, **settings)["only"]  # type: ignore[arg-type]
    rounded = descend({"only": linear}, error, [(0, [0])] * 200, stored={"only": stored}, **settings)["only"]  # type: ignore[arg-type]
    assert mx.array_equal(linear.weight, found).item()
    assert error_of(rounded) < 0.8 * min(error_of(plain), error_of(stored.origin))
    assert not np.array(stored.nearest(rounded))[~np.array(stored.kept)].any()


def test_an_adapter_beside_the_codes_is_not_rounded(tiny: ChatModel) -> None:
    model = quantized(tiny, "affine", 2)
    stored = model.stored[model.path(0, "mlp.up_proj")]
    assert isinstance(stored, QuantizedWeight)
    fixed = dataclasses.replace(stored, origin=stored.values(), is_fixed=True)
    weight = mx.random.normal(stored.values().shape)
    assert mx.array_equal(fixed.nearest(weight), weight).item()
