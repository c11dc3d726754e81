"""MLX's quantized weights as GGML blocks with the same codes and scales: no value changes.

Array kernels. MLX packs the codes of a row as one little-endian stream of bits and keeps scales apart; GGML puts the
scale before its block's codes. A group of 64 or 128 becomes two or four blocks with the same scale.
Source: ``mx.quantize``'s documentation; ``ggml/src/ggml-common.h``.
"""

from __future__ import annotations

import numpy as np

from aird_mlx.errors import ShapeError
from aird_mlx.gguf_export.packing import LOW, columns_in_parts, pack_high_bits, pack_nibbles

FOUR = np.uint64(4)
BLOCK = 32
# What is only moved is one item to numpy: both scales of a block, and its 16 bytes of codes.
_MXFP4 = np.dtype([("scale", "u1"), ("codes", "V16")])
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
    stream = np.ascontiguousarray(packed).view(np.uint8).reshape(len(packed), -1, bits)  # eight codes
    codes = np.empty((*stream.shape[:2], 8), dtype=np.uint8)
    for number in range(8):
        byte, shift = divmod(number * bits, 8)
        code = stream[..., byte] >> shift
        if shift + bits > 8:
            code = code | (stream[..., byte + 1] << (8 - shift))
        codes[..., number] = code & (2**bits - 1)
    return codes.reshape(len(packed), -1)


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
        codes = unpack_codes(packed, bits).reshape(-1, BLOCK)
        if bits == 5:
            blocks["high"] = pack_high_bits(codes).view(np.uint32).reshape(-1)
            codes = codes & 15
        blocks["codes"] = pack_nibbles(codes).view("V16")[:, 0]
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
    blocks = np.empty((scales.size // 4, 36), dtype=np.uint8)
    blocks[:, :4] = scales.reshape(-1, 4)
    codes = unpack_codes(packed, 4).reshape(-1, 16)
    blocks[:, 4:] = pack_nibbles(codes).reshape(-1, 32)
    return blocks.reshape(len(packed), -1)


def _put_nibbles(packed: np.ndarray, codes: np.ndarray) -> None:
    """From neighbours in a byte to halves of a block in a byte: 32 four-bit codes in, 32 out.

    Args:
        packed: ``[out, in / 8]`` uint32, two neighbours a byte, the first low.
        codes: ``[block]`` of 16 bytes, written to: byte i holds code i low and code i + 16 high.
    """
    for part, (first, second) in columns_in_parts(packed, 2):
        moved = first >> FOUR  # the odd codes of the first half change places with the even ones of the second
        moved ^= second
        moved &= LOW
        second ^= moved
        moved <<= FOUR
        first ^= moved
        pairs = second.view(np.uint8).astype(np.uint16)
        pairs <<= np.uint16(8)
        pairs |= first.view(np.uint8)
        codes[part] = pairs.view("V16")
