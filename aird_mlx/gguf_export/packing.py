"""Codes of a block packed into bytes, as GGML's block formats share it. Kernels on arrays."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

ONES = np.uint64(0x1111111111111111)  # one in each of 16 codes of four bits
LOW = np.uint64(0x0F0F0F0F0F0F0F0F)  # of two codes in a byte the lower one
_MAGNITUDE = np.uint64(0x0707070707070707)  # of that its bits but the sign
BYTES_IN_CACHE = 1 << 18  # codes taken at a time: all that is made of them stays in a processor's cache


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
        code = np.rint(-biases / scales).reshape(-1)
        may = (code * scales.reshape(-1) + biases.reshape(-1) == 0) & (code >= 0) & (code <= 15)
        pattern = code.astype(np.uint8).astype(np.uint64)  # nonsense where no code may be zero
    nothing = int(np.count_nonzero((scales == 0) & (biases == 0)))
    pattern *= ONES
    low = may * LOW  # where no code may be zero nothing is seen, which looks like zeros
    zeros = (nothing - may.size + int(np.count_nonzero(may))) * group_size
    for part, words in columns_in_parts(packed, group_size // 16):
        words ^= pattern[part]
        zeros += _count_zero_nibbles(words, low[part])
    return zeros


def count_zero_floats(packed: np.ndarray) -> int:
    """How many of these 4-bit floats (sign, exponent, mantissa) are zero, of either sign; ``packed``: whole words.

    >>> count_zero_floats(np.array([[0x8765432100000000]], dtype=np.uint64))
    9
    """
    return sum(_count_zero_nibbles(words, _MAGNITUDE) for _, words in columns_in_parts(packed, 1))


def columns_in_parts(packed: np.ndarray, width: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Words of 16 four-bit codes as numpy is fast on them: contiguous, and few enough to stay in the processor's cache.

    Args:
        packed: codes in rows of ``width`` words, in arrays of whatever shape and type.
        width: words that belong together.

    Yields:
        Which rows, and a copy of their columns, ``[width, row]`` uint64.
    """
    rows = np.ascontiguousarray(packed).view(np.uint64).reshape(-1, width)
    step = max(1, BYTES_IN_CACHE // rows[:1].nbytes) if len(rows) else 1
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        yield part, rows[part].T.copy()


def _count_zero_nibbles(words: np.ndarray, low: np.ndarray | np.uint64) -> int:
    """How many codes are zero in the bits that ``low`` has of them, which are those of a byte's lower half."""
    zeros = 16 * words.size
    for bits in (low, low << np.uint64(4)):
        zeros -= int(np.count_nonzero((words & bits).view(np.uint8)))
    return zeros
