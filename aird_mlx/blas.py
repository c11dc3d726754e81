"""Give MLX a fast BLAS on Linux, where its CPU wheel carries a slow one.

The command line, the tests and the examples call this before MLX is first imported; the library never does,
since which BLAS a process uses is the application's choice. It imports only the standard library.
"""

from __future__ import annotations

import _ctypes
import ctypes
import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIBRARY = "libopenblas.so.0"
# What OpenBLAS before 0.3.25 takes an Intel processor for that is newer than itself, and its name for what that can do
# with the flag that Linux has for it, best first.
UNKNOWN, CORES, CHOSEN = "Prescott", {"avx512vl": "SkylakeX", "avx2": "Haswell"}, "OPENBLAS_CORETYPE"


@functools.cache
def use_openblas() -> bool:
    """Let MLX use the system's OpenBLAS; to be called before anything imports ``mlx``.

    MLX's Linux CPU wheel links a reference BLAS: 8 GFLOP/s in float32 on two cores, where OpenBLAS does 250
    (measured, mlx 0.32.4). Symbols of a library that is loaded globally before MLX are found first, and that
    is all this does. On macOS MLX uses Accelerate and Metal: nothing is done there.

    An OpenBLAS that does not know the processor (Debian 12's on Intel's of 2023) would use kernels of 2004, a fifth as
    fast; it is told what the processor can do, unless ``OPENBLAS_CORETYPE`` is set.

    Returns:
        Whether OpenBLAS is in place. False is no error: MLX works without, only slower. It is not where it is
        missing, or where MLX was imported first.

    Source:
        ld.so(8): symbols are looked up in load order among globally loaded libraries. OpenBLAS issue 4267.

    >>> use_openblas() in (True, False)
    True
    """
    if sys.platform != "linux" or "mlx.core" in sys.modules:
        return False
    try:
        library = ctypes.CDLL(LIBRARY, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    better = _better_core() if core_of(library) == UNKNOWN and CHOSEN not in os.environ else None
    if better is not None:  # it chooses when it is loaded
        _ctypes.dlclose(library._handle)
        os.environ[CHOSEN] = better
        ctypes.CDLL(LIBRARY, mode=ctypes.RTLD_GLOBAL)
        del os.environ[CHOSEN]  # another OpenBLAS, such as numpy's, knows better
    return True


def core_of(library: ctypes.CDLL) -> str:
    """The processor that an OpenBLAS takes this one for, by its name for it; empty where it does not say."""
    try:
        name = library.openblas_get_corename
    except AttributeError:
        return ""
    name.restype = ctypes.c_char_p
    return bytes(name() or b"").decode()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """While open, an OpenBLAS that is loaded takes one thread for a product; without one nothing changes."""
    try:
        library = ctypes.CDLL(LIBRARY, mode=os.RTLD_NOLOAD)
    except OSError:
        yield
        return
    before = library.openblas_get_num_threads()
    library.openblas_set_num_threads(1)
    try:
        yield
    finally:
        library.openblas_set_num_threads(before)


def _better_core() -> str | None:
    """What OpenBLAS should take the processor for; None where it has no more than that one had."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    return next((name for flag, name in CORES.items() if flag in flags), None)
