"""GGML's block formats: float32 values to bytes and back.

Array kernels that give the bytes of llama.cpp's reference quantizers; no model, no file. A row is cut into blocks of
32, 64 or 256 neighbours that share a scale. The four-bit floats are in `microscaling`, the ternary types in `ternary`.
Source: ``ggml/src/ggml-quants.c`` and ``ggml-common.h``.
"""

from __future__ import annotations

from collections.abc import Callable

import gguf
import numpy as np

from aird_mlx.errors import ShapeError
from aird_mlx.gguf_export import microscaling, ternary
from aird_mlx.gguf_export.outtypes import Kind
from aird_mlx.gguf_export.packing import (
    BYTES_IN_CACHE,
    EVERY_CODE,
    column_of,
    count_zero_codes,
    count_zero_floats,
    pack_high_bits,
    pack_nibbles,
    parts_of,
    unpack_high_bits,
    unpack_nibbles,
    zero_codes,
)
from aird_mlx.gguf_export.rounding import float16_bytes, float16_column, inverse_of, round_away

# bfloat16 bits of the smallest normal float16 number, and of what float16 holds no more.
SMALLEST_HALF, INFINITE_HALF = 113 << 7, 143 << 7

Kernel = Callable[[np.ndarray], np.ndarray]


def quantize(values: np.ndarray, kind: Kind) -> np.ndarray:
    """Encode rows.

    Args:
        values: ``[..., in]`` float32, finite; ``in`` a multiple of the block.
        kind: a float type, or one of ``BLOCK_KERNELS``.

    Returns:
        ``[..., bytes]`` uint8.

    Raises:
        ShapeError: rows do not divide into blocks.

    >>> quantize(np.arange(32, dtype=np.float32)[None], Kind.Q8_0)[0, 2:6].tolist()
    [0, 4, 8, 12]
    """
    values = np.ascontiguousarray(values, dtype=np.float32)
    if kind == Kind.F32:
        return values.view(np.uint8)
    if kind == Kind.F16:
        return values.astype(np.float16).view(np.uint8)
    if kind == Kind.BF16:
        return float_to_bfloat16(values).view(np.uint8)
    length, size = gguf.GGML_QUANT_SIZES[kind]
    if values.shape[-1] % length:
        raise ShapeError(
            f"blocks: rows of {values.shape[-1]} values; {kind.name} needs a multiple of {length}. Use another type."
        )
    encoded = BLOCK_KERNELS[kind][0](values.reshape(-1, length))
    return encoded.reshape(*values.shape[:-1], values.shape[-1] // length * size)


def dequantize(encoded: np.ndarray, kind: Kind) -> np.ndarray:
    """Decode rows as llama.cpp does.

    Args:
        encoded: ``[..., bytes]`` uint8, whole blocks.
        kind: any type that `quantize` writes, or one that PyPI's gguf decodes.

    Returns:
        ``[..., in]`` float32.
    """
    encoded = np.ascontiguousarray(encoded)
    if kind == Kind.F32:
        return encoded.view(np.float32)
    if kind == Kind.F16:
        return encoded.view(np.float16).astype(np.float32)
    if kind == Kind.BF16:
        return bfloat16_to_float(encoded.view(np.uint16))
    if kind not in BLOCK_KERNELS:
        return np.asarray(gguf.quants.dequantize(encoded, kind))
    length, size = gguf.GGML_QUANT_SIZES[kind]
    decoded = BLOCK_KERNELS[kind][1](encoded.reshape(-1, size))
    return decoded.reshape(*encoded.shape[:-1], encoded.shape[-1] // size * length)


def count_zeros(encoded: np.ndarray, kind: Kind) -> int:
    """How many weights are exactly zero when a runtime decodes these rows.

    >>> count_zeros(quantize(np.zeros((2, 32), dtype=np.float32), Kind.Q4_0), Kind.Q4_0)
    64
    """
    if kind in (Kind.F16, Kind.BF16):
        bits = np.ascontiguousarray(encoded).view(np.uint16)
        return bits.size - int(np.count_nonzero(bits << 1))  # without their signs
    if kind in _ZERO_COUNTS:
        blocks = np.ascontiguousarray(encoded).reshape(-1, gguf.GGML_QUANT_SIZES[kind][1])
        return sum(_ZERO_COUNTS[kind](blocks[part]) for part in parts_of(blocks))
    decoded = dequantize(encoded, kind)
    return decoded.size - int(np.count_nonzero(decoded))


def float_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The upper half of float32, rounded to nearest even; uint16 of the same shape. ``values`` must be finite."""
    bits = values.view(np.uint32)
    return ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)


def bfloat16_to_float(bits: np.ndarray) -> np.ndarray:
    """float32 of the same shape."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def bfloat16_to_half(bits: np.ndarray) -> tuple[np.ndarray, int, int]:
    """float16 bits of bfloat16 numbers, five times faster than by way of float32.

    Args:
        bits: uint16.

    Returns:
        uint16 of the same shape, rounded to nearest even, infinite beyond float16's range; how many of them are not
        the same number; and how many of these became zero.

    >>> [hex(half) for half in bfloat16_to_half(np.array([0x3F80, 0xC000, 0x8000], dtype=np.uint16))[0]]
    ['0x3c00', '0xc000', '0x8000']
    """
    flat, halves = bits.reshape(-1), np.empty(bits.size, dtype=np.uint16)
    inexact = vanished = 0
    for part in parts_of(flat, BYTES_IN_CACHE // 2):
        halves[part], *counts = _to_half(flat[part])
        inexact, vanished = inexact + counts[0], vanished + counts[1]
    return halves.reshape(bits.shape), inexact, vanished


def _to_half(bits: np.ndarray) -> tuple[np.ndarray, int, int]:
    """`bfloat16_to_half` of few numbers, ``[n]``, and not none."""
    magnitude = bits & np.uint16(0x7FFF)
    half = bits << np.uint16(3)  # exponents differ by 112: in float16's five bits that is 16, one flipped bit
    half &= np.uint16(0x7FFF)
    sign = bits & np.uint16(0x8000)
    sign |= np.uint16(0x4000)
    half ^= sign
    above = magnitude - np.uint16(SMALLEST_HALF)  # smaller numbers wrap around, and are larger than any
    is_odd = above >= np.uint16(INFINITE_HALF - SMALLEST_HALF)
    if np.count_nonzero(magnitude) < magnitude.size:
        is_zero = magnitude == 0
        np.copyto(half, bits, where=is_zero)
        is_odd &= ~is_zero
    odd = np.flatnonzero(is_odd)
    values = bfloat16_to_float(bits[odd])
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float16)
    half[odd] = rounded.view(np.uint16)
    return half, int(np.count_nonzero(rounded != values)), int(np.count_nonzero(rounded == 0))


def _five_bits(blocks: np.ndarray, start: int) -> np.ndarray:
    codes = unpack_nibbles(column_of(blocks, start + 4, "V16"))
    codes |= unpack_high_bits(column_of(blocks, start, "V4"))
    return codes


def _extreme_of(blocks: np.ndarray) -> np.ndarray:
    """The value that is largest without its sign, ``[block, 1]``; the first of equals."""
    return np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1, keepdims=True), axis=-1)


def _symmetric(blocks: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale and codes of q4_0 and q5_0: the extreme value becomes code 0."""
    half = 2 ** (bits - 1)
    scale = _extreme_of(blocks) / np.float32(-half)
    codes = (blocks * inverse_of(scale) + np.float32(half + 0.5)).astype(np.uint8)
    return scale, np.minimum(codes, np.uint8(2 * half - 1), out=codes)


def _affine(blocks: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scale, minimum and codes of q4_1 and q5_1."""
    minimum = blocks.min(axis=-1, keepdims=True)
    most = 2**bits - 1
    scale = (blocks.max(axis=-1, keepdims=True) - minimum) / np.float32(most)
    codes = ((blocks - minimum) * inverse_of(scale) + np.float32(0.5)).astype(np.uint8)
    return scale, minimum, np.minimum(codes, np.uint8(most), out=codes)


def _quantize_q4_0(blocks: np.ndarray) -> np.ndarray:
    scale, codes = _symmetric(blocks, 4)
    return np.concatenate([float16_bytes(scale), pack_nibbles(codes)], axis=-1)


def _quantize_q4_1(blocks: np.ndarray) -> np.ndarray:
    scale, minimum, codes = _affine(blocks, 4)
    return np.concatenate([float16_bytes(scale), float16_bytes(minimum), pack_nibbles(codes)], axis=-1)


def _quantize_q5_0(blocks: np.ndarray) -> np.ndarray:
    scale, codes = _symmetric(blocks, 5)
    return np.concatenate([float16_bytes(scale), pack_high_bits(codes), pack_nibbles(codes & 15)], axis=-1)


def _quantize_q5_1(blocks: np.ndarray) -> np.ndarray:
    scale, minimum, codes = _affine(blocks, 5)
    parts = [float16_bytes(scale), float16_bytes(minimum), pack_high_bits(codes), pack_nibbles(codes & 15)]
    return np.concatenate(parts, axis=-1)


def _quantize_q8_0(blocks: np.ndarray) -> np.ndarray:
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    scaled = blocks * inverse_of(scale)
    return np.concatenate([float16_bytes(scale), round_away(scaled).astype(np.int8).view(np.uint8)], axis=-1)


def _dequantize_q4_0(blocks: np.ndarray) -> np.ndarray:
    return float16_column(blocks, 0) * (unpack_nibbles(blocks[:, 2:]).astype(np.float32) - np.float32(8))


def _dequantize_q4_1(blocks: np.ndarray) -> np.ndarray:
    codes = unpack_nibbles(blocks[:, 4:]).astype(np.float32)
    return float16_column(blocks, 0) * codes + float16_column(blocks, 2)


def _dequantize_q5_0(blocks: np.ndarray) -> np.ndarray:
    return float16_column(blocks, 0) * (_five_bits(blocks, 2).astype(np.float32) - np.float32(16))


def _dequantize_q5_1(blocks: np.ndarray) -> np.ndarray:
    return float16_column(blocks, 0) * _five_bits(blocks, 4).astype(np.float32) + float16_column(blocks, 2)


def _dequantize_q8_0(blocks: np.ndarray) -> np.ndarray:
    return float16_column(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


# block type -> ([block, values] float32 to [block, bytes] uint8, and back)
BLOCK_KERNELS: dict[Kind, tuple[Kernel, Kernel]] = {
    Kind.Q4_0: (_quantize_q4_0, _dequantize_q4_0),
    Kind.Q4_1: (_quantize_q4_1, _dequantize_q4_1),
    Kind.Q5_0: (_quantize_q5_0, _dequantize_q5_0),
    Kind.Q5_1: (_quantize_q5_1, _dequantize_q5_1),
    Kind.Q8_0: (_quantize_q8_0, _dequantize_q8_0),
    Kind.MXFP4: (microscaling.quantize_mxfp4, microscaling.dequantize_mxfp4),
    Kind.NVFP4: (microscaling.quantize_nvfp4, microscaling.dequantize_nvfp4),
    Kind.TQ1_0: (ternary.quantize_tq1_0, ternary.dequantize_tq1_0),
    Kind.TQ2_0: (ternary.quantize_tq2_0, ternary.dequantize_tq2_0),
}


def _count_zeros_q4_1(blocks: np.ndarray) -> int:
    return count_zero_codes(column_of(blocks, 4, "V16"), float16_column(blocks, 0), float16_column(blocks, 2), 32)


def _count_zeros_q5_1(blocks: np.ndarray) -> int:
    code = zero_codes(float16_column(blocks, 0), float16_column(blocks, 2), 5)
    return int(np.count_nonzero(_five_bits(blocks, 4) == code)) + 32 * int(np.count_nonzero(code == EVERY_CODE))


# [block, bytes] uint8 to how many of their values are zero, where that is faster than decoding them
_ZERO_COUNTS: dict[Kind, Callable[[np.ndarray], int]] = {
    Kind.Q4_1: _count_zeros_q4_1,
    Kind.Q5_1: _count_zeros_q5_1,
    Kind.MXFP4: lambda blocks: count_zero_floats(column_of(blocks, 1, "V16")),
    Kind.NVFP4: lambda blocks: count_zero_floats(column_of(blocks, 4, "V32"), column_of(blocks, 0, "V4")),
}
