"""What llama.cpp's quantizers share: how they round, and how a scale is inverted and stored. Kernels on arrays."""

from __future__ import annotations

import numpy as np

from aird_mlx.gguf_export.packing import column_of


def round_away(values: np.ndarray) -> np.ndarray:
    """Nearest whole number, halves away from zero, as C's ``roundf``; numpy rounds them to even.

    >>> round_away(np.array([0.5, -0.5, 2.5, 0.49999997], dtype=np.float32)).tolist()
    [1.0, -1.0, 3.0, 0.0]
    """
    whole = np.trunc(values)
    return whole + np.trunc(2 * (values - whole))


def inverse_of(scale: np.ndarray) -> np.ndarray:
    """``1 / scale``, and 0 where that is no number: such a scale is zero in half precision too."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scale
    inverse[~np.isfinite(inverse)] = 0
    return inverse


def float16_bytes(column: np.ndarray) -> np.ndarray:
    """``[block, 1]`` float32 to ``[block, 2]`` uint8."""
    return column.astype(np.float16).view(np.uint8)


def float16_column(blocks: np.ndarray, start: int) -> np.ndarray:
    """Two bytes of each block as float32, ``[block, 1]``."""
    return column_of(blocks, start, "<f2").astype(np.float32)
