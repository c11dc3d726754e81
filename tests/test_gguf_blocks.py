"""Block codecs and repacks: against PyPI's gguf, float64 arithmetic, llama.cpp's own quantizers, and MLX."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aird_mlx.errors import ShapeError
from aird_mlx.gguf_export import is_available
from aird_mlx.gguf_export.blocks import BLOCK_KERNELS, bfloat16_to_half, count_zeros, dequantize, quantize
from aird_mlx.gguf_export.choice import find_nearest
from aird_mlx.gguf_export.outtypes import NEAREST, OUTTYPES, Kind
from aird_mlx.gguf_export.packing import BYTES_IN_CACHE
from aird_mlx.gguf_export.repack import repack_affine, repack_mxfp4, repack_nvfp4, spread_codes

needs_llama = pytest.mark.skipif(not is_available(), reason="llama-cpp-python is not installed")
KINDS = list(BLOCK_KERNELS)
# Largest error of a weight in units of its block's largest weight; affine types in units of its range.
WORST = {
    Kind.Q8_0: 0.5 / 127, Kind.Q5_0: 1 / 16, Kind.Q4_0: 1 / 8, Kind.Q5_1: 1 / 31, Kind.Q4_1: 1 / 15,
    Kind.MXFP4: 0.26, Kind.NVFP4: 0.2, Kind.TQ1_0: 0.5, Kind.TQ2_0: 0.5,
}  # fmt: skip
GROUPS = st.sampled_from([32, 64, 128])
DTYPES = st.sampled_from([mx.float32, mx.float16, mx.bfloat16])


def weights(seed: int, rows: int, width: int, scale: float, zeros: float = 0.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    values = scale * random.standard_normal((rows, width))
    return np.where(random.random((rows, width)) < zeros, 0.0, values).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@settings(max_examples=15)
@given(
    seed=st.integers(0, 10**6), rows=st.integers(1, 5), blocks=st.integers(1, 3),
    scale=st.sampled_from([1e-4, 0.02, 1.0, 100.0]), zeros=st.sampled_from([0.0, 0.5, 1.0]),
)  # fmt: skip
def test_codec_has_the_bytes_of_gguf_and_a_bounded_error(
    kind: Kind, seed: int, rows: int, blocks: int, scale: float, zeros: float
) -> None:
    length, size = gguf.GGML_QUANT_SIZES[kind]
    values = weights(seed, rows, blocks * max(length, 64), scale, zeros)
    encoded = quantize(values, kind)
    assert encoded.shape == (rows, values.shape[1] // length * size)
    if kind != Kind.NVFP4:  # gguf only reads it
        np.testing.assert_array_equal(encoded, gguf.quants.quantize(values, kind))
    decoded = dequantize(encoded, kind)
    np.testing.assert_array_equal(decoded, gguf.quants.dequantize(encoded, kind))
    assert count_zeros(encoded, kind) == (decoded == 0).sum()
    if OUTTYPES[kind.name.lower()].keeps_zeros:
        assert (decoded[values == 0] == 0).all()
    exact = values.astype(np.float64).reshape(rows, -1, length)
    largest = np.abs(exact).max(-1) if kind not in (Kind.Q4_1, Kind.Q5_1) else exact.max(-1) - exact.min(-1)
    if scale >= 0.02:  # below, E4M3 and f16 scales are subnormal
        error = np.abs(decoded.reshape(exact.shape) - exact).max(-1)
        assert (error <= (WORST[kind] + 0.002) * largest + 0.002 * np.abs(exact).max(-1)).all()


@needs_llama
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_codec_has_the_bytes_of_llama_cpp(kind: Kind) -> None:
    import llama_cpp

    library = next(path for path in (Path(llama_cpp.__file__).parent / "lib").glob("*ggml-base*") if path.is_file())
    ggml = ctypes.CDLL(str(library))
    values = weights(1, 64, 1024, 0.02, 0.3)
    values[0] = 0
    values[1:32] *= np.geomspace(1e-2, 1e4, 31, dtype=np.float32)[:, None]  # subnormal and normal scales
    values[32:48] = np.sign(values[32:48])  # what ternary types are for
    encoded = quantize(values, kind)
    name, length = kind.name.lower(), ctypes.c_int64(values.size)
    theirs, decoded = np.zeros_like(encoded), np.zeros_like(values)
    getattr(ggml, f"quantize_row_{name}_ref")(as_pointer(values), as_pointer(theirs), length)
    getattr(ggml, f"dequantize_row_{name}")(as_pointer(encoded), as_pointer(decoded), length)
    different = (encoded != theirs).mean()
    # Where a product and 0.5 are added, a compiler may fuse the two, which moves a tie.
    assert different <= (1e-3 if kind.name[:2] in ("Q4", "Q5") else 0.0)
    np.testing.assert_array_equal(dequantize(encoded, kind), decoded)


def as_pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def test_bfloat16_rounds_to_nearest_even() -> None:
    values = weights(0, 16, 64, 1.0)
    expected = np.array(mx.array(values).astype(mx.bfloat16).astype(mx.float32))
    np.testing.assert_array_equal(dequantize(quantize(values, Kind.BF16), Kind.BF16), expected)
    tie = np.array([[1 + 2**-8, 1 + 3 * 2**-8]], dtype=np.float32)
    assert dequantize(quantize(tie, Kind.BF16), Kind.BF16).tolist() == [[1.0, 1 + 2**-6]]


def test_rows_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ShapeError, match="rows of 48 values; Q4_0 needs a multiple of 32"):
        quantize(np.zeros((2, 48), dtype=np.float32), Kind.Q4_0)


@given(seed=st.integers(0, 10**6), bits=st.integers(1, 8), blocks=st.integers(1, 9))
def test_spread_codes_are_those_of_the_bit_stream(seed: int, bits: int, blocks: int) -> None:
    packed = np.random.default_rng(seed).integers(0, 2**32, (blocks, bits), dtype=np.uint32)
    spread = spread_codes(packed, bits).T.copy().view(np.uint8)
    for block, codes in zip(packed, spread, strict=True):
        stream = sum(int(word) << (32 * place) for place, word in enumerate(block))
        assert codes.tolist() == [stream >> (bits * place) & (2**bits - 1) for place in range(32)]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6), bits=st.sampled_from([2, 3, 4, 5]), group=GROUPS, rows=st.integers(1, 5),
    groups=st.integers(1, 4), dtype=DTYPES, scale=st.sampled_from([1e-4, 0.02, 1.0, 50.0]),
    zeros=st.sampled_from([0.0, 0.5]),
)  # fmt: skip
def test_affine_repack_is_codes_times_scales(
    seed: int, bits: int, group: int, rows: int, groups: int, dtype: Any, scale: float, zeros: float
) -> None:
    codes, scales, biases = mx.quantize(
        mx.array(weights(seed, rows, group * groups, scale, zeros)).astype(dtype), group_size=group, bits=bits
    )
    stored = [np.array(part.astype(mx.float32)) for part in (scales, biases)]
    encoded, counted = repack_affine(np.array(codes), *stored, bits=bits, group_size=group)
    kind = Kind.Q5_1 if bits == 5 else Kind.Q4_1
    decoded = dequantize(encoded, kind)
    held = [part.astype(np.float16).astype(np.float64) for part in stored]
    unscaled = mx.dequantize(codes, mx.ones(scales.shape), mx.zeros(scales.shape), group_size=group, bits=bits)
    numbers = np.array(unscaled, dtype=np.float64).reshape(rows, groups, group)
    oracle = (numbers * held[0][..., None] + held[1][..., None]).reshape(rows, -1)
    np.testing.assert_array_equal(decoded, oracle.astype(np.float32))
    np.testing.assert_array_equal(decoded, gguf.quants.dequantize(encoded, kind))
    assert counted == count_zeros(encoded, kind) == (decoded == 0).sum()
    inexact = sum(int((part != whole).sum()) for part, whole in zip(stored, held, strict=True))
    theirs = mx.dequantize(codes, *(mx.array(part) for part in stored), group_size=group, bits=bits)
    if inexact == 0:
        assert np.abs(decoded - np.array(theirs)).max() == 0.0
    assert inexact == 0 or dtype == mx.float32 or scale == 1e-4


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10**6), mode=st.sampled_from(["mxfp4", "nvfp4"]), rows=st.integers(1, 5),
    blocks=st.integers(1, 4), dtype=DTYPES, scale=st.sampled_from([1e-3, 0.02, 1.0, 100.0]),
)  # fmt: skip
def test_four_bit_floats_are_repacked_bit_for_bit(
    seed: int, mode: str, rows: int, blocks: int, dtype: Any, scale: float
) -> None:
    codes, scales = mx.quantize(mx.array(weights(seed, rows, 64 * blocks, scale, 0.3)).astype(dtype), mode=mode)
    kind, repacked = (Kind.MXFP4, repack_mxfp4) if mode == "mxfp4" else (Kind.NVFP4, repack_nvfp4)
    encoded = repacked(np.array(codes), np.array(scales))
    theirs = np.array(mx.dequantize(codes, scales, mode=mode).astype(mx.float32))
    assert np.abs(dequantize(encoded, kind) - theirs).max() == 0.0
    assert count_zeros(encoded, kind) == (theirs == 0).sum()
    np.testing.assert_array_equal(dequantize(encoded, kind), gguf.quants.dequantize(encoded, kind))


@pytest.mark.parametrize(("mode", "bits"), [("affine", 4), ("affine", 5), ("mxfp4", 4)])
def test_codes_taken_in_parts_are_all_there(mode: str, bits: int) -> None:
    rows, width = 1301, 1984
    size = rows * width * bits // 8
    assert size > 2 * BYTES_IN_CACHE and size % BYTES_IN_CACHE
    group = {"affine": 64, "mxfp4": 32}[mode]
    parts = mx.quantize(mx.array(weights(1, rows, width, 0.02, 0.4)).astype(mx.float16), group, bits, mode)
    codes, *scales = map(np.array, parts)
    if mode == "affine":
        kind = Kind.Q5_1 if bits == 5 else Kind.Q4_1
        encoded, zeros = repack_affine(codes, *scales, bits=bits, group_size=group)
    else:
        kind, encoded = Kind.MXFP4, repack_mxfp4(codes, *scales)
        zeros = count_zeros(encoded, kind)
    theirs = mx.dequantize(*(part.astype(mx.float32) if part.dtype == mx.float16 else part for part in parts),
                           group_size=group, bits=bits, mode=mode)  # fmt: skip
    np.testing.assert_array_equal(dequantize(encoded, kind), np.array(theirs.astype(mx.float32)))
    assert zeros == (np.array(theirs.astype(mx.float32)) == 0).sum() > 0


def test_repack_refuses_what_does_not_belong_together() -> None:
    with pytest.raises(ShapeError, match="6 bits"):
        repack_affine(np.zeros((2, 12), np.uint32), np.zeros((2, 1)), np.zeros((2, 1)), bits=6, group_size=64)
    with pytest.raises(ShapeError, match="group 16"):
        repack_affine(np.zeros((2, 8), np.uint32), np.zeros((2, 4)), np.zeros((2, 4)), bits=4, group_size=16)
    with pytest.raises(ShapeError, match=r"scales \(2, 2\)"):
        repack_affine(np.zeros((2, 8), np.uint32), np.zeros((2, 2)), np.zeros((2, 2)), bits=4, group_size=64)


@pytest.mark.parametrize(("mode", "bits"), [("affine", 6), ("affine", 8), ("mxfp8", 8)])
def test_nearest_block_is_the_one_with_the_least_error(mode: str, bits: int) -> None:
    group = 64 if mode == "affine" else 32
    parts = mx.quantize(mx.array(weights(0, 64, 256, 0.02)), group_size=group, bits=bits, mode=mode)
    values = np.array(mx.dequantize(*parts, group_size=group, bits=bits, mode=mode).astype(mx.float32))
    kind, error = find_nearest(values)
    errors = {
        one: np.linalg.norm(gguf.quants.dequantize(gguf.quants.quantize(values, one), one) - values) for one in NEAREST
    }
    assert kind == min(errors, key=lambda one: errors[one]) == Kind.Q8_0
    assert error == pytest.approx(errors[kind] / np.linalg.norm(values), rel=1e-5)


def test_every_bfloat16_number_becomes_the_float16_that_numpy_gives() -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    values = (every.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(all="ignore"):
        wanted = values.astype(np.float16)
    numbers = ~np.isnan(values)
    half, inexact, vanished = bfloat16_to_half(every[numbers])
    np.testing.assert_array_equal(half, wanted.view(np.uint16)[numbers])
    assert inexact == (wanted != values)[numbers].sum()
    assert vanished == ((wanted == 0) & (values != 0)).sum()
    assert np.isnan(bfloat16_to_half(every[~numbers])[0].view(np.float16)).all()
    assert bfloat16_to_half(every[:0])[0].size == 0
