"""Codes of a block packed into bytes, as GGML's block formats share it. Kernels on arrays."""

from __future__ import annotations

import numpy as np


def pack_nibbles(codes: np.ndarray) -> np.ndarray:
    """Two halves of a block in one byte each: code i low, code i + half high; ``[..., 2n]`` to ``[..., n]``."""
    half = codes.shape[-1] // 2
    return codes[..., :half] | (codes[..., half:] << 4)


def unpack_nibbles(packed: np.ndarray) -> np.ndarray:
    """The inverse of `pack_nibbles`."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def pack_high_bits(codes: np.ndarray) -> np.ndarray:
    """Bit 4 of 32 codes as four bytes, first code lowest; ``[block, 32]`` to ``[block, 4]``."""
    return np.packbits(codes >> 4, axis=-1, bitorder="little")


def unpack_high_bits(packed: np.ndarray) -> np.ndarray:
    """The inverse of `pack_high_bits`: that bit where it belongs, the others zero."""
    return np.unpackbits(packed, axis=-1, bitorder="little") << 4
