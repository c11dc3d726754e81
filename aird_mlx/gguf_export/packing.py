"""Codes of a block packed into bytes, as GGML's block formats share it. Kernels on arrays."""

from __future__ import annotations

import numpy as np

ONES = np.uint64(0x1111111111111111)  # one in each of 16 codes of four bits
_LOW_FOURS, _BYTE_ONES = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0x0101010101010101)


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
        group_size: a multiple of 16, at most 240.

    >>> count_zero_codes(np.full((1, 4), 0x77777770, dtype=np.uint32), np.ones((1, 1)), np.full((1, 1), -7.0), 32)
    28
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        code = np.rint(-biases / scales).reshape(-1)
        may = (code * scales.reshape(-1) + biases.reshape(-1) == 0) & (code >= 0) & (code <= 15)
        pattern = code.astype(np.uint8).astype(np.uint64)  # nonsense where no code may be zero
    nothing = int(np.count_nonzero((scales == 0) & (biases == 0)))
    pattern *= ONES  # in all 16 places of a word, to be compared word by word of a group: rows of a few are slow
    different, shifted, others = (np.zeros(scales.size, dtype=np.uint64) for _ in range(3))
    for column in np.ascontiguousarray(packed).view(np.uint64).reshape(scales.size, -1).T:
        np.bitwise_xor(column, pattern, out=different)
        for bits in (1, 2):
            different |= np.right_shift(different, np.uint64(bits), out=shifted)
        different &= ONES
        others += different  # in each place how many differ, at most 15 words
    of_group = (others & _LOW_FOURS) + ((others >> np.uint64(4)) & _LOW_FOURS)
    of_group *= _BYTE_ONES  # the uppermost byte becomes the sum of all
    of_group >>= np.uint64(56)
    of_group *= may
    return (int(np.count_nonzero(may)) + nothing) * group_size - int(of_group.sum())


def count_zero_floats(packed: np.ndarray) -> int:
    """How many of these 4-bit floats (sign, exponent, mantissa) are zero, of either sign; ``packed``: whole words.

    >>> count_zero_floats(np.array([[0x8765432100000000]], dtype=np.uint64))
    9
    """
    words = np.ascontiguousarray(packed).view(np.uint64)
    others = words | (words >> np.uint64(1)) | (words >> np.uint64(2))
    others &= ONES
    return 16 * words.size - int(np.bitwise_count(others).sum())
