"""MXFP4 and NVFP4: four-bit floats (E2M1) under a shared eight-bit scale.

Array kernels with the bytes of llama.cpp's reference, which keeps the E2M1 values doubled and halves the scale.
MXFP4: a power of two (E8M0) per 32 weights. NVFP4: four scales (E4M3) of 16 weights each in a block of 64.
Source: OCP Microscaling Formats 1.0; ``ggml/src/ggml-quants.c`` and ``ggml-impl.h``.
"""

from __future__ import annotations

import numpy as np

from aird_mlx.gguf_export.packing import pack_nibbles, unpack_nibbles

DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], dtype=np.float32)
BETWEEN = (0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0)  # halfway, in doubled units; a tie goes to the smaller
LARGEST_NVFP4 = 448.0 * 6.0


def quantize_mxfp4(blocks: np.ndarray) -> np.ndarray:
    """``[block, 32]`` float32 to ``[block, 17]`` uint8: exponent, then code i low and code i + 16 high."""
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        exponent = np.where(largest > 0, np.floor(np.log2(largest)) + np.float32(125), np.float32(0))
    exponent = exponent.clip(0, 254).astype(np.uint8)
    codes = _nearest(blocks, decode_e8m0(exponent))
    return np.concatenate([exponent, pack_nibbles(codes)], axis=-1)


def dequantize_mxfp4(blocks: np.ndarray) -> np.ndarray:
    """``[block, 17]`` uint8 to ``[block, 32]`` float32."""
    return decode_e8m0(blocks[:, :1]) * DOUBLED[unpack_nibbles(blocks[:, 1:])]


def quantize_nvfp4(blocks: np.ndarray) -> np.ndarray:
    """``[block, 64]`` float32 to ``[block, 36]`` uint8: four scales, then per 16 weights code i low, i + 8 high."""
    groups = blocks.reshape(-1, 4, 16)
    scales = encode_e4m3(np.abs(groups).max(axis=-1) / np.float32(6))
    codes = _nearest(groups, decode_e4m3(scales)[..., None])
    return np.concatenate([scales, pack_nibbles(codes).reshape(-1, 32)], axis=-1)


def dequantize_nvfp4(blocks: np.ndarray) -> np.ndarray:
    """``[block, 36]`` uint8 to ``[block, 64]`` float32."""
    values = DOUBLED[unpack_nibbles(blocks[:, 4:].reshape(-1, 4, 8))]
    return (decode_e4m3(blocks[:, :4])[..., None] * values).reshape(-1, 64)


def decode_e8m0(exponent: np.ndarray) -> np.ndarray:
    """Half of ``2 ** (exponent - 127)``, float32; 0 and 1 are subnormal.

    >>> decode_e8m0(np.array([127, 128], dtype=np.uint8)).tolist()
    [0.5, 1.0]
    """
    wide = exponent.astype(np.uint32)
    bits = np.where(wide < 2, np.uint32(0x00200000) << wide, (wide - np.uint32(1)) << np.uint32(23))
    return bits.view(np.float32)


def decode_e4m3(scale: np.ndarray) -> np.ndarray:
    """Half of an unsigned E4M3 number, float32; 127 is no number, and read as 0."""
    wide = scale.astype(np.int32)
    exponent, mantissa = wide >> 3 & 15, (wide & 7).astype(np.float32)
    value = np.where(exponent == 0, np.ldexp(mantissa, -10), np.ldexp(mantissa + np.float32(8), exponent - 11))
    return np.where(scale == 127, np.float32(0), value).astype(np.float32)


def encode_e4m3(values: np.ndarray) -> np.ndarray:
    """Non-negative float32 to E4M3 as llama.cpp rounds it: halves up, and whatever reaches 256 becomes 448."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    normal = ((values.view(np.uint32) + np.uint32(1 << 19)) >> np.uint32(20)).astype(np.int64) - (120 << 3)
    subnormal = np.minimum((values * np.float32(512) + np.float32(0.5)).astype(np.int64), 7)
    code = np.where(values < np.float32(2.0**-6), subnormal, np.where(normal >= 15 << 3, 126, normal))
    return code.astype(np.uint8)


def _nearest(values: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Codes of the nearest E2M1 values, uint8; what is nearest to zero is code 0, never minus zero."""
    magnitude = np.abs(values)
    codes = np.zeros(values.shape, dtype=np.uint8)
    for middle in BETWEEN:
        codes += magnitude > unit * np.float32(middle)
    codes *= unit > 0  # a scale that underflows leaves zeros
    codes |= ((values < 0) & (codes > 0)).astype(np.uint8) << np.uint8(3)
    return codes
