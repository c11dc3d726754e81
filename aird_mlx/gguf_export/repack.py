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
    EVERY_CODE,
    LOW,
    count_zero_codes,
    pack_high_bits,
    pack_nibbles,
    parts_of,
    zero_codes,
)

BLOCK = 32
# What is only moved is one item to numpy: both scales of a block, and its 16 bytes of codes.
_MXFP4 = np.dtype([("scale", "u1"), ("codes", "V16")])
_NVFP4 = np.dtype([("scales", "<u4"), ("codes", "V32")])
_Q4_1 = np.dtype([("scales", "<u4"), ("codes", "V16")])
_Q5_1 = np.dtype([("scales", "<u4"), ("high", "<u4"), ("codes", "V16")])


def unpack_codes(packed: np.ndarray, bits: int) -> np.ndarray:
    """The codes of MLX's packed rows.

    Args:
        packed: ``[out, in * bits / 32]`` uint32.
        bits: 1 to 8.

    Returns:
        ``[out, in]`` uint8.

    >>> unpack_codes(np.array([[0x87654321]], dtype=np.uint32), 4).tolist()
    [[1, 2, 3, 4, 5, 6, 7, 8]]
    """
    stream = np.zeros(packed.nbytes + 8 - bits, dtype=np.uint8)
    stream[: packed.nbytes] = np.ascontiguousarray(packed).view(np.uint8).reshape(-1)
    words = np.ndarray(packed.nbytes // bits, "<u8", stream, strides=(bits,)).copy()  # eight codes, and what follows
    for room in (32, 16, 8):  # the upper half of the codes that are together moves up, until each has a byte
        half = room * bits // 8
        low = np.uint64(sum(((1 << half) - 1) << lane for lane in range(0, 64, 2 * room)))
        upper = words >> np.uint64(half)
        upper &= low
        upper <<= np.uint64(room)
        words &= low
        words |= upper
    return words.view(np.uint8).reshape(len(packed), -1)


def count_zeros(packed: np.ndarray, scales: np.ndarray, biases: np.ndarray, *, bits: int, group_size: int) -> int:
    """How many weights of affine codes are exactly zero.

    Args:
        packed: ``[out, in * bits / 32]`` uint32.
        scales, biases: ``[out, in / group_size]`` float32, as the runtime has them.
        bits: 1 to 8.
        group_size: a multiple of 32.
    """
    if bits == 4:
        return count_zero_codes(packed, scales, biases, group_size)
    zero = zero_codes(scales, biases, bits).reshape(-1, 1)
    zeros, groups = int(np.count_nonzero(zero == EVERY_CODE)) * group_size, packed.reshape(len(zero), -1)
    for part in parts_of(groups):
        zeros += int(np.count_nonzero(unpack_codes(groups[part], bits) == zero[part]))
    return zeros


def repack_affine(
    packed: np.ndarray, scales: np.ndarray, biases: np.ndarray, *, bits: int, group_size: int
) -> np.ndarray:
    """Affine codes of 2, 3 or 4 bits as Q4_1, of 5 bits as Q5_1.

    Args:
        packed: ``[out, in * bits / 32]`` uint32.
        scales: ``[out, in / group_size]``; rounded to float16 where it is not.
        biases: like ``scales``; the value of code 0.
        bits: 2, 3, 4 or 5.
        group_size: a multiple of 32.

    Returns:
        ``[out, bytes]`` uint8: per 32 weights f16 scale, f16 minimum, for 5 bits four bytes of upper bits, 16 bytes.

    Raises:
        ShapeError: the group does not divide into blocks, or scales and codes do not belong together.

    >>> codes = np.full((1, 4), 0x77777777, dtype=np.uint32)
    >>> repack_affine(codes, np.ones((1, 1)), -np.ones((1, 1)), bits=4, group_size=32)[0, :5].tolist()
    [0, 60, 0, 188, 119]
    """
    rows, length = len(packed), packed.shape[1] * 32 // bits
    if bits not in (2, 3, 4, 5) or group_size % BLOCK or scales.shape != (rows, length // group_size):
        raise ShapeError(
            f"repack: {bits} bits, group {group_size}, scales {scales.shape} for {rows} x {length} weights; 2 to 5 "
            f"bits, a multiple of {BLOCK} and one scale per group are needed. Dequantize these weights instead."
        )
    blocks = np.empty(rows * length // BLOCK, dtype=_Q5_1 if bits == 5 else _Q4_1)
    pairs = np.empty((scales.size, 2), dtype=np.float16)
    for column, values in enumerate((scales, biases)):
        with np.errstate(over="ignore"):  # refused before, where the folder is read
            pairs[:, column] = values.reshape(-1)
    for block in range(group_size // BLOCK):  # of a group, one after the other: rows of a few are slow in numpy
        blocks["scales"][block :: group_size // BLOCK] = pairs.view(np.uint32)[:, 0]
    if bits == 4:
        _put_nibbles(packed, blocks["codes"])
    else:
        for part in parts_of(packed.reshape(-1, bits)):  # a block each
            codes = unpack_codes(packed.reshape(-1, bits)[part], bits)
            if bits == 5:
                blocks["high"][part] = pack_high_bits(codes).view(np.uint32)[:, 0]
                codes &= 15
            blocks["codes"][part] = pack_nibbles(codes).view("V16")[:, 0]
    return blocks.view(np.uint8).reshape(rows, -1)


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
