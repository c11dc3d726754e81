"""MLX's quantized weights as GGML blocks with the same codes and scales: no value changes.

Array kernels. MLX packs the codes of a row as one little-endian stream of bits and keeps scales apart; GGML puts the
scale before its block's codes. A group of 64 or 128 becomes two or four blocks with the same scale.
Source: ``mx.quantize``'s documentation; ``ggml/src/ggml-common.h``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aird_mlx.errors import ShapeError
from aird_mlx.gguf_export.packing import (
    EIGHT_ONES,
    EVERY_CODE,
    LOW,
    UPPER,
    count_zero_codes,
    parts_of,
    zero_codes,
)

BLOCK = 32
# What is only moved is one item to numpy: both scales of a block, and its 16 bytes of codes.
_MXFP4 = np.dtype([("scale", "u1"), ("codes", "V16")])
_NVFP4 = np.dtype([("scales", "<u4"), ("codes", "V32")])
# The codes of these two also as two words.
_Q4_1 = np.dtype(
    {"names": ["scales", "codes", "first", "second"], "formats": ["<u4", "V16", "<u8", "<u8"], "offsets": [0, 4, 4, 12]}
)
_Q5_1 = np.dtype(
    {"names": ["scales", "high", "first", "second"], "formats": ["<u4", "4u1", "<u8", "<u8"], "offsets": [0, 4, 8, 16]}
)


def spread_codes(packed: np.ndarray, bits: int) -> np.ndarray:
    """The codes of MLX's packed rows, a byte each, eight in a word.

    Args:
        packed: ``[block, bits]`` uint32: 32 codes a block, as one little-endian stream of bits.
        bits: 1 to 8.

    Returns:
        ``[4, block]`` uint64: of each block the first eight codes, the second, and so on; the first of them lowest.

    >>> [hex(eight) for eight in spread_codes(np.array([[0x87654321, 0, 0, 0x10]], dtype=np.uint32), 4)[:, 0].tolist()]
    ['0x807060504030201', '0x0', '0x0', '0x100']
    """
    stream = np.empty(packed.nbytes + 8 - bits, dtype=np.uint8)
    stream[: packed.nbytes] = np.ascontiguousarray(packed).view(np.uint8).reshape(-1)
    words = np.ndarray((4, len(packed)), "<u8", stream, strides=(bits, 4 * bits)).copy()  # eight codes and some more
    words &= np.uint64((1 << 8 * bits) - 1)
    upper = np.empty_like(words)
    for room in (32, 16, 8):  # the upper half of the codes that are together moves up, until each has a byte
        half = room * bits // 8
        where = np.uint64(sum(((1 << half) - 1) << (lane + half) for lane in range(0, 64, 2 * room)))
        np.bitwise_and(words, where, out=upper)
        upper *= np.uint64((1 << (room - half)) - 1)  # what the place it goes to is more than its own
        words += upper
    return words


def repack_affine(
    packed: np.ndarray, scales: np.ndarray, biases: np.ndarray, *, bits: int, group_size: int
) -> tuple[np.ndarray, int]:
    """Affine codes of 2, 3 or 4 bits as Q4_1, of 5 bits as Q5_1.

    Args:
        packed: ``[out, in * bits / 32]`` uint32.
        scales: ``[out, in / group_size]``; rounded to float16 where it is not.
        biases: like ``scales``; the value of code 0.
        bits: 2, 3, 4 or 5.
        group_size: a multiple of 32.

    Returns:
        ``[out, bytes]`` uint8: per 32 weights f16 scale, f16 minimum, for 5 bits four bytes of upper bits, 16 bytes;
        and how many of these weights are exactly zero.

    Raises:
        ShapeError: the group does not divide into blocks, or scales and codes do not belong together.

    >>> codes = np.full((1, 4), 0x77777777, dtype=np.uint32)
    >>> blocks, zeros = repack_affine(codes, np.ones((1, 1)), -7 * np.ones((1, 1)), bits=4, group_size=32)
    >>> blocks[0, :5].tolist(), zeros
    ([0, 60, 0, 199, 119], 32)
    """
    rows, length = len(packed), packed.shape[1] * 32 // bits
    if bits not in (2, 3, 4, 5) or group_size % BLOCK or scales.shape != (rows, length // group_size):
        raise ShapeError(
            f"repack: {bits} bits, group {group_size}, scales {scales.shape} for {rows} x {length} weights; 2 to 5 "
            f"bits, a multiple of {BLOCK} and one scale per group are needed. Dequantize these weights instead."
        )
    blocks = np.empty((rows, length // BLOCK), dtype=_Q5_1 if bits == 5 else _Q4_1)
    zeros = sum(
        _put_affine(packed[part], scales[part], biases[part], blocks[part].reshape(-1), bits, group_size)
        for part in parts_of(packed)
    )
    return blocks.view(np.uint8).reshape(rows, -1), zeros


def _put_affine(
    packed: np.ndarray, scales: np.ndarray, biases: np.ndarray, blocks: np.ndarray, bits: int, group_size: int
) -> int:
    """`repack_affine` of some rows into their blocks, ``[block]``; how many weights are exactly zero."""
    halves = np.empty((2, scales.size), dtype=np.float16)
    with np.errstate(over="ignore"):  # refused before, where the folder is read
        halves[0], halves[1] = scales.reshape(-1), biases.reshape(-1)
    pairs = halves[1].view(np.uint16).astype(np.uint32) << np.uint32(16)
    pairs |= halves[0].view(np.uint16)
    for block in range(group_size // BLOCK):  # of a group, one after the other: rows of a few are slow in numpy
        blocks["scales"][block :: group_size // BLOCK] = pairs
    scale, bias = halves.astype(np.float32)  # what a runtime computes with
    if bits == 4:
        _put_nibbles(packed, blocks["codes"])
        return count_zero_codes(packed, scale, bias, group_size)
    return _put_spread(packed.reshape(-1, bits), blocks, zero_codes(scale, bias, bits), group_size)


def repack_mxfp4(packed: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """MLX's mxfp4 as MXFP4.

    Args:
        packed: ``[out, in / 8]`` uint32.
        scales: ``[out, in / 32]`` uint8, E8M0.

    Returns:
        ``[out, in / 32 * 17]`` uint8.
    """
    blocks = np.empty(scales.size, dtype=_MXFP4)
    blocks["scale"] = scales.reshape(-1)
    _put_nibbles(packed, blocks["codes"])
    return blocks.view(np.uint8).reshape(len(packed), -1)


def repack_nvfp4(packed: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """MLX's nvfp4 as NVFP4.

    Args:
        packed: ``[out, in / 8]`` uint32; ``in`` a multiple of 64.
        scales: ``[out, in / 16]`` uint8, E4M3.

    Returns:
        ``[out, in / 64 * 36]`` uint8: four scales, then their groups of 16.
    """
    blocks = np.empty(scales.size // 4, dtype=_NVFP4)
    blocks["scales"] = np.ascontiguousarray(scales).view(np.uint32).reshape(-1)
    _put_nibbles(packed, blocks["codes"], np.uint32)
    return blocks.view(np.uint8).reshape(len(packed), -1)


def _put_nibbles(packed: np.ndarray, codes: np.ndarray, half: type[np.unsignedinteger[Any]] = np.uint64) -> None:
    """From neighbours in a byte to halves of a group in a byte.

    Args:
        packed: ``[out, in / 8]`` uint32, two neighbours a byte, the first low.
        codes: ``[block]`` of bytes, written to: byte i of a group holds code i low and code i of its other half high.
        half: what half a group of codes fits in.
    """
    words = np.ascontiguousarray(packed).view(half).reshape(len(codes), -1, 2)
    four, low = half(4), LOW.astype(half)
    for part in parts_of(words):
        first, second = words[part].reshape(-1, 2).T.copy()
        moved = first >> four  # the odd codes of the first half change places with the even ones of the second
        moved ^= second
        moved &= low
        second ^= moved
        moved <<= four
        first ^= moved
        pairs = second.view(np.uint8).astype(np.uint16)
        pairs <<= np.uint16(8)
        pairs |= first.view(np.uint8)
        codes[part] = pairs.view(codes.dtype)


def _put_spread(packed: np.ndarray, blocks: np.ndarray, zero: np.ndarray, group_size: int) -> int:
    """Codes of 2, 3 or 5 bits into blocks; how many of them decode to zero.

    Args:
        packed: ``[block, bits]`` uint32.
        blocks: ``[block]`` of `_Q4_1` or `_Q5_1`, whose codes are written to.
        zero: `packing.zero_codes` of each group.
        group_size: a multiple of 32.
    """
    zeros = int(np.count_nonzero(zero == EVERY_CODE)) * group_size
    words = spread_codes(packed, packed.shape[-1])
    others = words ^ np.repeat(zero * EIGHT_ONES, group_size // BLOCK)
    zeros += others.nbytes - int(np.count_nonzero(others.view(np.uint8)))
    if packed.shape[-1] == 5:
        high = np.packbits(np.bitwise_and(words, UPPER, out=others).view(np.uint8), bitorder="little").reshape(4, -1)
        for quarter in range(4):
            blocks["high"][:, quarter] = high[quarter]
        words &= LOW
    words[2:] <<= np.uint64(4)
    words[:2] |= words[2:]
    blocks["first"], blocks["second"] = words[:2]
    return zeros
