"""Quantization: exact zeros, errors against plain `mx.quantize`, MLX's own format, and folders that mlx-lm loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aird_mlx.errors import AirdError, ModelError, ShapeError, UsageError
from aird_mlx.model import ChatModel, load, save
from aird_mlx.pruning import prune_model
from aird_mlx.quantization import check_quantization, quantize_model, quantize_with_zeros
from aird_mlx.quantization.affine import BITS, GROUP_SIZES, pack_codes

TYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


def sparse_weight(seed: int, sparsity: float, dtype: mx.Dtype, shape: tuple[int, int] = (32, 256)) -> mx.array:
    generator = np.random.default_rng(seed)
    weight = generator.normal(size=shape) * 0.03
    weight[generator.random(shape) < sparsity] = 0.0
    return mx.array(weight.astype(np.float32)).astype(dtype)


def restored(parts: tuple[mx.array, ...], group_size: int, bits: int) -> np.ndarray:
    return np.array(mx.dequantize(*parts, group_size=group_size, bits=bits).astype(mx.float32)).astype(np.float64)


def error_of(found: np.ndarray, weight: mx.array) -> float:
    wanted = np.array(weight.astype(mx.float32)).astype(np.float64)
    return float(np.sum((found - wanted)[wanted != 0] ** 2))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_zeros_stay_zero_and_the_error_is_not_above_plain_quantization(dtype: str, bits: int, group_size: int) -> None:
    for sparsity in (0.5, 0.7):
        weight = sparse_weight(bits, sparsity, TYPES[dtype])
        zeros = np.array(weight == 0)
        parts, plain = quantize_with_zeros(weight, group_size, bits), mx.quantize(weight, group_size, bits)
        assert [(one.shape, one.dtype) for one in parts] == [(one.shape, one.dtype) for one in plain]
        found = restored(parts, group_size, bits)
        assert (found[zeros] == 0).all()
        assert error_of(found, weight) <= error_of(restored(plain, group_size, bits), weight)


@given(
    st.integers(0, 2**31),
    st.sampled_from(BITS),
    st.sampled_from(sorted(TYPES)),
    st.floats(-3, 3),
    st.sampled_from([1e-4, 1.0, 300.0]),
)
@settings(max_examples=40)
def test_zeros_stay_zero_wherever_the_other_weights_lie(
    seed: int, bits: int, dtype: str, shift: float, scale: float
) -> None:
    weight = sparse_weight(seed, 0.5, mx.float32, (4, 64))
    moved = mx.where(weight == 0, 0.0, (weight * 30 + shift) * scale).astype(TYPES[dtype])
    found = restored(quantize_with_zeros(moved, 32, bits), 32, bits)
    assert (found[np.array(moved == 0)] == 0).all()
    assert np.isfinite(found).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bits", BITS)
def test_bias_is_exactly_a_whole_number_of_scales(dtype: str, bits: int) -> None:
    """So that code z is 0 where the hardware fuses the product with the sum, and, of up to 5 bits, in GGUF's f16."""
    _, scales, biases = quantize_with_zeros(sparse_weight(bits, 0.5, TYPES[dtype]), 32, bits)
    scale, bias = (np.array(one.astype(mx.float32)).astype(np.float64) for one in (scales, biases))
    zero = -bias / scale
    np.testing.assert_array_equal(zero, np.round(zero))
    np.testing.assert_array_equal(scale * np.round(zero), -bias)
    assert ((zero >= 0) & (zero < 2**bits)).all()
    if bits <= 5 and dtype != "bfloat16":
        for one in (scale, bias):
            np.testing.assert_array_equal(one.astype(np.float16).astype(np.float64), one)


def test_plain_quantization_loses_zeros_so_that_there_is_something_to_keep() -> None:
    weight = sparse_weight(0, 0.5, mx.float32)
    found = restored(mx.quantize(weight, 64, 4), 64, 4)
    assert (found[np.array(weight == 0)] == 0).mean() < 0.99


def test_quantized_weight_is_the_nearest_code_in_numpy() -> None:
    weight = sparse_weight(3, 0.5, mx.float32, (8, 64))
    codes, scales, biases = quantize_with_zeros(weight, 32, 4)
    values = np.array(weight, dtype=np.float64).reshape(8, 2, 32)
    grid = (
        np.array(scales, dtype=np.float64)[..., None, None] * np.arange(16)
        + np.array(biases, dtype=np.float64)[..., None, None]
    )
    nearest = np.abs(values[..., None] - grid).min(axis=-1)
    found = restored((codes, scales, biases), 32, 4).reshape(8, 2, 32)
    np.testing.assert_allclose(np.abs(found - values), nearest, atol=1e-7)


def test_all_zero_group_stays_zero() -> None:
    assert (restored(quantize_with_zeros(mx.zeros((2, 64)), 32, 4), 32, 4) == 0).all()


@pytest.mark.parametrize("bits", BITS)
def test_pack_codes_is_the_format_of_mlx(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 2**bits, (3, 128))
    packed = pack_codes(mx.array(codes.astype(np.uint32)), bits)
    ones = mx.ones((3, 2))
    found = mx.dequantize(packed, ones, mx.zeros((3, 2)), group_size=64, bits=bits)
    np.testing.assert_array_equal(np.array(found), codes)


def test_group_that_does_not_divide_is_refused_by_the_kernel() -> None:
    with pytest.raises(ShapeError, match="group_size 64 does not divide the 96 inputs"):
        quantize_with_zeros(mx.zeros((2, 96)), 64, 4)


@pytest.mark.parametrize(
    ("mode", "bits", "group_size", "words"),
    [
        ("int4", None, None, "mode is 'int4'; one of affine, mxfp4, mxfp8, nvfp4"),
        ("affine", 7, None, "bits is 7; mode affine in MLX has 2, 3, 4, 5, 6, 8"),
        ("affine", 1, None, "bits is 1"),
        ("affine", 4, 48, "group_size is 48; mode affine in MLX has 32, 64, 128"),
        ("mxfp4", 8, None, "bits is 8; mode mxfp4 in MLX has 4"),
        ("nvfp4", None, 32, "group_size is 32; mode nvfp4 in MLX has 16"),
    ],
)
def test_what_mlx_lacks_is_one_line(mode: str, bits: int | None, group_size: int | None, words: str) -> None:
    with pytest.raises(UsageError, match=words) as raised:
        check_quantization(mode, bits, group_size)
    assert "\n" not in str(raised.value)


def test_group_that_does_not_divide_a_linear_is_named_and_nothing_is_changed(tiny: ChatModel) -> None:
    with pytest.raises(UsageError, match=r"group_size 64 does not divide the 32 inputs of .*embed_tokens"):
        quantize_model(tiny)
    assert not any(isinstance(one, nn.QuantizedLinear) for one in tiny.network.modules())
    assert "quantization" not in tiny.config


def test_network_that_is_quantized_already_is_one_line(tiny: ChatModel) -> None:
    quantize_model(tiny, group_size=32)
    with pytest.raises(ModelError, match=r"quantized already \(4 bits, group 32\)"):
        quantize_model(tiny, group_size=32)


@pytest.mark.parametrize(
    "how",
    [
        {"bits": 4, "group_size": 32},
        {"bits": 3, "group_size": 32},
        {"mode": "mxfp4"},
        {"mode": "mxfp8"},
        {"mode": "nvfp4"},
        {"group_size": 32, "recipe": lambda path, module: {"bits": 8} if "down" in path else "q_proj" not in path},
    ],
    ids=lambda how: " ".join(str(value) for value in how.values() if not callable(value)),
)
def test_written_folder_loads_in_mlx_lm_with_its_zeros(tiny: ChatModel, tmp_path: Path, how: dict[str, Any]) -> None:
    prune_model(tiny, [], method="magnitude", pattern="2:4")
    pruned = {f"{block}.{name}": np.array(linear.weight) == 0 for block, name, linear in tiny.linears()}
    report = quantize_model(tiny, **how)
    save(tiny, tmp_path / "out")
    network, _ = mlx_lm.load(str(tmp_path / "out"))
    ids = mx.array([[3, 4, 5]])
    np.testing.assert_array_equal(np.array(network(ids)), np.array(tiny.network(ids)))
    again = load(tmp_path / "out")
    for block, name, linear in again.linears():
        assert (np.array(linear.weight == 0)[pruned[f"{block}.{name}"]]).all(), name
    assert report.zeros_kept == 1.0
    assert report.bits_per_weight < 16
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]
    if "recipe" in how:
        assert config["model.layers.1.mlp.down_proj"]["bits"] == 8
        assert config["model.layers.1.self_attn.q_proj"] is False
        assert report.skipped == [f"model.layers.{block}.self_attn.q_proj" for block in range(4)]
    else:
        assert set(config) == {"bits", "group_size", "mode"}


def test_report_counts_errors_of_each_module(tiny: ChatModel) -> None:
    weight = tiny.linear(1, "mlp.up_proj").weight
    report = quantize_model(tiny, bits=5, group_size=32)
    (one,) = (one for one in report.tensors if one.name == "model.layers.1.mlp.up_proj")
    found = restored(mx.quantize(weight, 32, 5), 32, 5)
    wanted = np.array(weight, dtype=np.float64)
    assert one.error == pytest.approx(np.linalg.norm(found - wanted) / np.linalg.norm(wanted), rel=1e-4)
    assert (one.bits, one.group_size, one.mode, one.zeros, one.zeros_kept) == (5, 32, "affine", 0.0, 1.0)


def test_recipe_with_bits_that_mlx_lacks_is_one_line(tiny: ChatModel) -> None:
    with pytest.raises(AirdError, match="bits is 7"):
        quantize_model(tiny, group_size=32, recipe=lambda path, module: {"bits": 7})
