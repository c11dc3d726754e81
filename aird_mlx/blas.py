"""Give MLX a fast BLAS on Linux, where its CPU wheel carries a slow one.

The command line, the tests and the examples call this before MLX is first imported; the library never does,
since which BLAS a process uses is the application's choice. It imports only the standard library.
"""

from __future__ import annotations

import ctypes
import functools
import sys


@functools.cache
def use_openblas() -> bool:
    """Let MLX use the system's OpenBLAS; to be called before anything imports ``mlx``.

    MLX's Linux CPU wheel links a reference BLAS: 8 GFLOP/s in float32 on two cores, where OpenBLAS does 250
    (measured, mlx 0.32.4). Symbols of a library that is loaded globally before MLX are found first, and that
    is all this does. On macOS MLX uses Accelerate and Metal: nothing is done there.

    Returns:
        Whether OpenBLAS is in place. False is no error: MLX works without, only slower. It is not where it is
        missing, or where MLX was imported first.

    Source:
        ld.so(8): symbols are looked up in load order among globally loaded libraries.

    >>> use_openblas() in (True, False)
    True
    """
    if sys.platform != "linux" or "mlx.core" in sys.modules:
        return False
    try:
        ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True
