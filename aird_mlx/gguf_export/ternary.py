"""TQ1_0 and TQ2_0: blocks of 256 weights that are -1, 0 or 1 times a scale.

Array kernels with the bytes of llama.cpp's reference. TQ2_0 takes two bits a weight; TQ1_0 packs five trits in a
byte, as the digits of a fraction in base 3. Source: ``ggml/src/ggml-quants.c``, ``ggml-common.h``.
"""

from __future__ import annotations

import numpy as np

from aird_mlx.gguf_export.rounding import float16_bytes, float16_column, inverse_of, round_away

# Weights that share bytes: (how many trits in a byte, bytes); the first 160 weights, the next 80, the last 16.
TQ1_PARTS = ((5, 32), (5, 16), (4, 4))
TQ1_BYTES, TQ2_BYTES = 52, 64


def _trits(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale ``[block, 1]`` float32, and 0, 1, 2 for -1, 0, 1 as uint8."""
    scale = np.abs(blocks).max(axis=-1, keepdims=True)
    return scale, (round_away(blocks * inverse_of(scale)) + np.float32(1)).astype(np.uint8)


def quantize_tq1_0(blocks: np.ndarray) -> np.ndarray:
    """``[block, 256]`` float32 to ``[block, 54]`` uint8: 48 + 4 bytes of trits, then an f16 scale."""
    scale, trits = _trits(blocks)
    parts, start = [], 0
    for count, width in TQ1_PARTS:
        digits = trits[:, start : start + count * width].reshape(-1, count, width)
        start += count * width
        powers = np.array([81, 27, 9, 3, 1][:count], dtype=np.uint16).reshape(1, count, 1)
        parts.append((digits * powers).sum(axis=1, dtype=np.uint16))
    whole = np.concatenate(parts, axis=-1)
    # A fraction of 256 instead of 243, so that multiplying by 3 brings the digits out one by one.
    packed = ((whole * np.uint16(256) + np.uint16(242)) // np.uint16(243)).astype(np.uint8)
    return np.concatenate([packed, float16_bytes(scale)], axis=-1)


def dequantize_tq1_0(blocks: np.ndarray) -> np.ndarray:
    """``[block, 54]`` uint8 to ``[block, 256]`` float32."""
    parts, start = [], 0
    for count, width in TQ1_PARTS:
        powers = np.array([1, 3, 9, 27, 81][:count], dtype=np.uint8).reshape(1, count, 1)
        digits = blocks[:, None, start : start + width] * powers  # wraps: the digits above are dropped
        start += width
        parts.append(((digits.astype(np.uint16) * 3) >> 8).reshape(len(blocks), -1))
    return float16_column(blocks, TQ1_BYTES) * (np.concatenate(parts, axis=-1).astype(np.float32) - np.float32(1))


def quantize_tq2_0(blocks: np.ndarray) -> np.ndarray:
    """``[block, 256]`` float32 to ``[block, 66]`` uint8: 64 bytes of four weights each, then an f16 scale."""
    scale, trits = _trits(blocks)
    four = trits.reshape(-1, 2, 4, 32)
    packed = four[:, :, 0] | (four[:, :, 1] << 2) | (four[:, :, 2] << 4) | (four[:, :, 3] << 6)
    return np.concatenate([packed.reshape(-1, TQ2_BYTES), float16_bytes(scale)], axis=-1)


def dequantize_tq2_0(blocks: np.ndarray) -> np.ndarray:
    """``[block, 66]`` uint8 to ``[block, 256]`` float32."""
    packed = blocks[:, :TQ2_BYTES].reshape(-1, 2, 1, 32)
    trits = (packed >> np.array([0, 2, 4, 6], dtype=np.uint8).reshape(1, 1, 4, 1)) & 3
    return float16_column(blocks, TQ2_BYTES) * (trits.reshape(-1, 256).astype(np.float32) - np.float32(1))
