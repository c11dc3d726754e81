"""Q4_1 and Q5_1 with a zero that is exact: what pruning removed stays removed, in blocks that any llama.cpp reads.

Stock quantizers put the smallest weight at code 0 and round scale and minimum apart, so that no code gives 0. Here the
minimum is a whole number of scales, both exact in float16; the pair of least squared error is searched for, with the
kernel that quantizes for MLX. Source: ours, see `aird_mlx.quantization.affine`.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from aird_mlx.gguf_export.outtypes import Kind
from aird_mlx.gguf_export.repack import repack_affine
from aird_mlx.quantization import quantize_with_zeros

BITS = {Kind.Q4_1: 4, Kind.Q5_1: 5}
BLOCK = 32


def quantize_zero_exact(values: np.ndarray, kind: Kind) -> tuple[np.ndarray, int]:
    """Encode rows so that every zero is exactly zero again.

    Args:
        values: ``[out, in]`` float32, finite and within float16's range; ``in`` a multiple of 32.
        kind: of `BITS`.

    Returns:
        ``[out, bytes]`` uint8, and how many weights are exactly zero in them.

    Raises:
        ShapeError: rows do not divide into blocks.

    >>> block, zeros = quantize_zero_exact(np.array([[0.0] * 30 + [1.0, -0.3]], dtype=np.float32), Kind.Q4_1)
    >>> scale, minimum = block[0, :4].copy().view(np.float16)
    >>> float(minimum + (int(block[0, 4]) & 15) * scale)  # what the first weight becomes
    0.0
    """
    codes, scales, biases = quantize_with_zeros(mx.array(values), BLOCK, BITS[kind])
    parts = (np.array(part) for part in (codes, scales, biases))
    return repack_affine(*parts, bits=BITS[kind], group_size=BLOCK)
