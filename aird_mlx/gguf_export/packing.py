"""Codes of a block packed into bytes, as GGML's block formats share it. Kernels on arrays."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

ONES = np.uint64(0x1111111111111111)  # one in each of 16 codes of four bits
EIGHT_ONES = np.uint64(0x0101010101010101)  # one in each of 8 codes of a byte
LOW = np.uint64(0x0F0F0F0F0F0F0F0F)  # of two codes in a byte the lower one
UPPER = np.uint64(0x1010101010101010)  # the fifth bit of a code in a byte
EVERY_CODE, NO_CODE = 254, 255
_MAGNITUDE = np.uint64(0x0707070707070707)  # of that its bits but the sign
BYTES_IN_CACHE = 1 << 19  # codes taken at a time; less is slower in threads, which meet at the interpreter's lock


def column_of(blocks: np.ndarray, start: int, kind: str) -> np.ndarray:
    """A field of every block; numpy copies items much faster than rows of a few bytes.

    Args:
        blocks: ``[block, bytes]`` uint8.
        start: first byte of the field.
        kind: numpy's name of its type, as ``<f2``; ``V16`` for 16 bytes.

    Returns:
        ``[block, 1]`` of that type, contiguous; bytes as ``[block, bytes]`` uint8.

    >>> column_of(np.array([[0, 0, 60], [1, 0, 64]], dtype=np.uint8), 1, "<f2").tolist()
    [[1.0], [2.0]]
    """
    layout = np.dtype({"names": ["field"], "formats": [kind], "offsets": [start], "itemsize": blocks.shape[-1]})
    column = np.ascontiguousarray(blocks).view(layout)["field"].copy()
    return column.view(np.uint8) if column.dtype.kind == "V" else column


def pack_nibbles(codes: np.ndarray) -> np.ndarray:
    """Two halves of a block in one byte each: code i low, code i + half high; ``[..., 2n]`` to ``[..., n]``."""
    half = codes.shape[-1] // 2
    halves = np.ascontiguousarray(codes).view(f"V{half}")  # each one item to numpy, which is slow on rows of a few
    low, high = (halves[..., which].copy().view(np.uint8).reshape(*codes.shape[:-1], half) for which in (0, 1))
    high <<= 4
    low |= high
    return low


def unpack_nibbles(packed: np.ndarray) -> np.ndarray:
    """The inverse of `pack_nibbles`."""
    half = f"V{packed.shape[-1]}"
    codes = np.empty((*packed.shape[:-1], 2), dtype=half)
    for which, nibbles in enumerate((packed & 15, packed >> 4)):
        codes[..., which] = np.ascontiguousarray(nibbles).view(half)[..., 0]
    return codes.view(np.uint8)


def pack_high_bits(codes: np.ndarray) -> np.ndarray:
    """Bit 4 of 32 codes as four bytes, first code lowest; ``[block, 32]`` to ``[block, 4]``."""
    return np.packbits((codes >> 4).reshape(-1), bitorder="little").reshape(*codes.shape[:-1], -1)


def unpack_high_bits(packed: np.ndarray) -> np.ndarray:
    """The inverse of `pack_high_bits`: that bit where it belongs, the others zero."""
    codes = np.unpackbits(packed.reshape(-1), bitorder="little")
    codes <<= 4
    return codes.reshape(*packed.shape[:-1], -1)


def zero_codes(scales: np.ndarray, biases: np.ndarray, bits: int) -> np.ndarray:
    """Of each group the code that decodes to exactly zero.

    Args:
        scales, biases: float32, as the runtime has them.
        bits: of a code.

    Returns:
        uint8 of the same shape, `NO_CODE` where none is zero, `EVERY_CODE` where all are.

    >>> zero_codes(np.array([2.0, 2.0, 0.0]), np.array([-8.0, -7.0, 0.0]), 4).tolist()
    [4, 255, 254]
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        code = biases / scales
        np.rint(code, out=code)
        may = code * scales == biases
        np.negative(code, out=code)
        may &= code >= 0
        may &= code < 2**bits
        codes = code.astype(np.uint8)
    codes |= may.view(np.uint8) - np.uint8(1)  # where there is none, every bit; many times faster than np.where
    if np.count_nonzero(scales) < scales.size:
        codes[(scales == 0) & (biases == 0)] = EVERY_CODE
    return codes


def count_zero_codes(packed: np.ndarray, scales: np.ndarray, biases: np.ndarray, group_size: int) -> int:
    """How many 4-bit codes decode to exactly zero.

    Args:
        packed: ``[out, in / 8]`` uint32, in whatever order within a group.
        scales, biases: ``[out, in / group_size]`` float32, as the runtime has them.
        group_size: a multiple of 16.

    >>> count_zero_codes(np.full((1, 4), 0x77777770, dtype=np.uint32), np.ones((1, 1)), np.full((1, 1), -7.0), 32)
    28
    """
    code = zero_codes(scales, biases, 4).reshape(-1)
    pattern = code * ONES  # nonsense where no code is zero
    may = code < EVERY_CODE
    low = may * LOW  # there nothing is seen, which looks like zeros
    zeros = (int(np.count_nonzero(code == EVERY_CODE)) - int(np.count_nonzero(~may))) * group_size
    groups = np.ascontiguousarray(packed).view(np.uint64).reshape(scales.size, -1)
    for part in parts_of(groups):
        words = groups[part].T.copy()  # numpy is several times faster on what is contiguous
        words ^= pattern[part]
        zeros += _count_zero_nibbles(words, low[part])
    return zeros


def count_zero_floats(packed: np.ndarray, scales: np.ndarray | None = None) -> int:
    """How many of these 4-bit floats (sign, exponent, mantissa) are zero, of either sign.

    Args:
        packed: whole words of 16.
        scales: one for each word, where they can be 0; of any type.

    >>> count_zero_floats(np.array([[0x8765432100000000]], dtype=np.uint64))
    9
    """
    words = np.ascontiguousarray(packed).view(np.uint64).reshape(-1)
    bits = np.broadcast_to(_MAGNITUDE, words.shape) if scales is None else (scales.reshape(-1) != 0) * _MAGNITUDE
    return sum(_count_zero_nibbles(words[part], bits[part]) for part in parts_of(words))


def parts_of(rows: np.ndarray, size: int = BYTES_IN_CACHE) -> Iterator[slice]:
    """Slices of the first axis, each of so few bytes that what is made of them stays in a processor's cache.

    >>> [(part.start, part.stop) for part in parts_of(np.zeros((3, BYTES_IN_CACHE // 2), dtype=np.uint8))]
    [(0, 2), (2, 4)]
    """
    step = max(1, size // rows[:1].nbytes) if rows.size else 1
    return (slice(start, start + step) for start in range(0, len(rows), step))


def _count_zero_nibbles(words: np.ndarray, low: np.ndarray | np.uint64) -> int:
    """How many codes are zero in the bits that ``low`` has of them, which are those of a byte's lower half."""
    zeros = 16 * words.size
    for bits in (low, low << np.uint64(4)):
        zeros -= int(np.count_nonzero((words & bits).view(np.uint8)))
    return zeros
