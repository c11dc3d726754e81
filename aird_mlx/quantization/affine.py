"""Affine quantization whose zero is exact: what pruning removed stays removed.

`mx.quantize` stores a group as codes q with a scale s and a bias b, ``w = s q + b``, and rounds s and b apart, so that
no code may give exactly 0. Here ``b = -s z`` for a whole code z, and s has so few significant bits that ``s z`` is
exact in the type of the scales: code z is 0 whatever order the hardware computes in. A kernel: arrays in, arrays out.

Source: ours; the grid is that of MLX's affine mode, and the search for s and z is by squared error, as llama.cpp's.
"""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx

from aird_mlx.errors import ShapeError

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)

# Bits of a number's significand, the leading one included.
_SIGNIFICAND = {mx.float32: 24, mx.float16: 11, mx.bfloat16: 8}
_LEAST_HALF = 2.0**-24  # the smallest float16 number: below 2^-14 all are whole multiples of it
# Ranges tried, as shares of the one that holds every weight: at few bits a few clipped weights cost less than a
# coarse grid.
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7)
_COARSE_SHARES = (*_SHARES, 0.6, 0.5, 0.4, 0.3)  # up to 3 bits
_PACKED = 32  # codes that fill whole 32-bit words at any number of bits


def quantize_with_zeros(weight: mx.array, group_size: int, bits: int) -> tuple[mx.array, mx.array, mx.array]:
    """Affine codes, scales and biases in MLX's format, with which every zero of the weight is exactly 0 again.

    Args:
        weight: ``[out, in]``, float32, float16 or bfloat16; exact zeros are kept, all else is rounded.
        group_size: consecutive inputs that share a scale, of `GROUP_SIZES`; divides ``in``.
        bits: of a code, of `BITS`.

    Returns:
        Codes ``[out, in * bits / 32]`` uint32; scales and biases ``[out, in / group_size]`` in the weight's type. For
        each group the (s, z) with the least squared error of those tried; zeros have none.

    Raises:
        ShapeError: ``group_size`` does not divide ``in``.

    >>> parts = quantize_with_zeros(mx.array([[0.0] * 30 + [1.0, -0.3]]), 32, 4)
    >>> mx.dequantize(*parts, group_size=32, bits=4)[0, :2].tolist()
    [0.0, 0.0]
    """
    rows, width = weight.shape
    if width % group_size:
        raise ShapeError(
            f"quantize: group_size {group_size} does not divide the {width} inputs of weight {weight.shape}; a divisor "
            f"is needed. Use one of {', '.join(map(str, GROUP_SIZES))} that does."
        )
    groups = weight.astype(mx.float32).reshape(rows, width // group_size, group_size)
    top = 2**bits - 1
    best = mx.full((*groups.shape[:2], 1), float("inf"))
    scale, zero = mx.ones_like(best), mx.zeros_like(best)
    for tried_scale, tried_zero in _candidates(groups, bits, weight.dtype):
        codes = mx.clip(mx.round(groups / tried_scale) + tried_zero, 0, top)
        error = mx.square((codes - tried_zero) * tried_scale - groups).sum(axis=-1, keepdims=True)
        is_better = error < best
        best = mx.where(is_better, error, best)
        scale = mx.where(is_better, tried_scale, scale)
        zero = mx.where(is_better, tried_zero, zero)
        mx.eval(best, scale, zero)
    codes = mx.clip(mx.round(groups / scale) + zero, 0, top)
    packed = pack_codes(codes.reshape(rows, width).astype(mx.uint32), bits)
    stored = scale.astype(weight.dtype)
    bias = -stored.astype(mx.float32) * zero
    return packed, stored[..., 0], bias[..., 0].astype(weight.dtype)


def pack_codes(codes: mx.array, bits: int) -> mx.array:
    """Codes ``[out, in]`` uint32 as MLX stores them: one stream of bits, lowest first, in 32-bit words.

    >>> pack_codes(mx.array([[1, 2] + [0] * 30], dtype=mx.uint32), 4).tolist()
    [[33, 0, 0, 0]]
    """
    rows, width = codes.shape
    chunks = codes.reshape(rows, width // _PACKED, _PACKED)
    words = [mx.zeros(chunks.shape[:2], dtype=mx.uint32) for _ in range(bits)]
    for index in range(_PACKED):
        word, shift = divmod(index * bits, 32)
        code = chunks[..., index]
        words[word] = words[word] | (code << shift)
        if shift + bits > 32:
            words[word + 1] = words[word + 1] | (code >> (32 - shift))
    return mx.stack(words, axis=-1).reshape(rows, -1)


def _candidates(groups: mx.array, bits: int, dtype: mx.Dtype) -> Iterator[tuple[mx.array, mx.array]]:
    """Pairs (s, z) to try: z beside the one that uses the whole range, and the middle; s a little tighter each time.

    Of many bits also the nearest z with few significant ones, which leaves more of them to s.
    """
    top = 2**bits - 1
    low = mx.minimum(groups.min(axis=-1, keepdims=True), 0.0)
    high = mx.maximum(groups.max(axis=-1, keepdims=True), 0.0)
    span = high - low
    ideal = mx.where(span > 0, mx.round(-low / mx.where(span > 0, span, 1.0) * top), 0.0)
    # GGUF takes codes of up to 5 bits over with a scale and a minimum in f16: there too the zero is to be exact.
    significand = min(_SIGNIFICAND[dtype], _SIGNIFICAND[mx.float16]) if bits <= 5 else _SIGNIFICAND[dtype]
    least = _LEAST_HALF if bits <= 5 or dtype == mx.float16 else 0.0
    middle = mx.full(ideal.shape, float(2 ** (bits - 1)))
    step = 2 ** max(bits - 4, 0)
    round_zero = mx.clip(mx.round(ideal / step) * step, 0, top - step + 1)
    beside = [ideal, mx.clip(ideal - 1, 0, top), mx.clip(ideal + 1, 0, top), middle]
    for zero in (*beside, round_zero) if bits > 4 else beside:
        above, below = top - zero, zero
        whole = mx.maximum(
            mx.where(above > 0, high / mx.maximum(above, 1.0), 0.0),
            mx.where(below > 0, -low / mx.maximum(below, 1.0), 0.0),
        )
        exact = significand - _significant_bits(zero, bits)
        for share in _SHARES if bits > 3 else _COARSE_SHARES:
            yield _snap(mx.where(whole > 0, whole * share, 1.0), exact, least), zero


def _significant_bits(zero: mx.array, bits: int) -> mx.array:
    """Bits of the whole number ``zero`` between its first and its last 1, at least 1: what a product with it adds."""
    value = mx.maximum(zero, 1.0).astype(mx.int32)
    for _ in range(bits):
        value = mx.where(value % 2 == 0, value // 2, value)
    length = mx.zeros_like(value)
    for power in range(bits):
        length = length + (value >= 2**power)
    return length


def _snap(scale: mx.array, significant: mx.array, least: float) -> mx.array:
    """Positive numbers rounded to so many significant bits, 1 or more, and to whole multiples of ``least``."""
    exponent = mx.floor(mx.log2(scale)) + 1 - mx.maximum(significant, 1)
    step = mx.maximum(mx.power(2.0, exponent), least)
    return mx.maximum(mx.round(scale / step), 1.0) * step
