"""OpenBLAS in MLX's place, each time in a process of its own: a library is loaded once."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from ctypes.util import find_library
from pathlib import Path

import pytest


def run(script: str, environment: dict[str, str] | None = None) -> str:
    """What it prints."""
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def test_openblas_is_in_place_only_before_mlx() -> None:
    """Loaded later it takes no symbol's place, and products stay slow: the answer has to say so."""
    late = "import mlx.core; from aird_mlx.blas import use_openblas; print(use_openblas())"
    assert run(late) == "False\n"


def test_openblas_uses_what_the_processor_can_do() -> None:
    """Debian 12's takes newer processors for one of 2004, and is a fifth as fast there."""
    if platform.machine() != "x86_64" or not find_library("openblas"):
        pytest.skip("another processor, or no OpenBLAS")
    script = """
import ctypes, os
from aird_mlx.blas import LIBRARY, core_of, use_openblas
print(use_openblas(), core_of(ctypes.CDLL(LIBRARY)), "OPENBLAS_CORETYPE" in os.environ)
"""
    flags = Path("/proc/cpuinfo").read_text().split()
    own = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    used, core, is_left = run(script, own).split()
    assert (used, is_left) == ("True", "False")
    assert (core == "Prescott") == ("avx2" not in flags)
    assert run(script, {**own, "OPENBLAS_CORETYPE": "Nehalem"}) == "True Nehalem True\n"


def test_openblas_takes_one_thread_while_told_to() -> None:
    if not find_library("openblas"):
        pytest.skip("no OpenBLAS")
    script = """
import ctypes
from aird_mlx.blas import LIBRARY, one_blas_thread, use_openblas
with one_blas_thread():  # nothing is loaded yet
    pass
use_openblas()
library = ctypes.CDLL(LIBRARY)
library.openblas_set_num_threads(3)
try:
    with one_blas_thread():
        print(library.openblas_get_num_threads())
        raise ValueError
except ValueError:
    print(library.openblas_get_num_threads())
"""
    assert run(script).split() == ["1", "3"]
