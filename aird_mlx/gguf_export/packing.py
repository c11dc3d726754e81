"""Codes of a block packed into bytes, as GGML's block formats share it. Kernels on arrays."""

from __future__ import annotations

import numpy as np

ONES = np.uint64(0x1111111111111111)  # one in each of 16 codes of four bits


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


def count_zero_codes(packed: np.ndarray, scales: np.ndarray, biases: np.ndarray, group_size: int) -> int:
    """How many 4-bit codes decode to exactly zero.

    Args:
        packed: ``[out, in / 8]`` uint32, in whatever order within a group.
        scales, biases: ``[out, in / group_size]`` float32, as the runtime has them.
        group_size: a multiple of 16.

    >>> count_zero_codes(np.full((1, 4), 0x77777770, dtype=np.uint32), np.ones((1, 1)), np.full((1, 1), -7.0), 32)
    28
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        code = np.rint(-biases / scales)
        may = (code * scales + biases == 0) & (code >= 0) & (code <= 15)
    nothing = int(np.count_nonzero((scales == 0) & (biases == 0)))
    # That code in all 16 places of a word, to be compared word by word of a group: rows of a few are slow in numpy.
    pattern = np.where(may, code, 0).astype(np.uint64).reshape(-1) * ONES
    counted = np.where(may, ONES, np.uint64(0)).reshape(-1)
    words = np.ascontiguousarray(packed).view(np.uint64).reshape(scales.size, -1)
    others = 0
    for column in words.T:
        different = column ^ pattern
        different |= different >> np.uint64(1)
        different |= different >> np.uint64(2)
        different &= counted
        others += int(np.bitwise_count(different).sum())
    return (int(np.count_nonzero(may)) + nothing) * group_size - others


def count_zero_floats(packed: np.ndarray) -> int:
    """How many of these 4-bit floats (sign, exponent, mantissa) are zero, of either sign; ``packed``: whole words.

    >>> count_zero_floats(np.array([[0x8765432100000000]], dtype=np.uint64))
    9
    """
    words = np.ascontiguousarray(packed).view(np.uint64)
    others = words | (words >> np.uint64(1)) | (words >> np.uint64(2))
    others &= ONES
    return 16 * words.size - int(np.bitwise_count(others).sum())
