"""llama.cpp's library, loaded once, and what it says: its log is its only way to give a reason.

It comes with llama-cpp-python (an optional package), of which only the low-level interface is used.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.util
from collections import deque
from collections.abc import Iterator
from typing import Any

from aird_mlx.errors import DependencyError

NOT_INSTALLED = "llama-cpp-python is not installed (pip install 'aird-mlx[llama]')"
ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR


def is_available() -> bool:
    """Whether llama-cpp-python is installed; loads nothing."""
    return importlib.util.find_spec("llama_cpp") is not None


@functools.cache
def last_errors() -> deque[str]:
    """The last error lines of llama.cpp: its only way to give a reason. Clear it before a call that may fail."""
    return deque(maxlen=3)


def last_reason() -> str:
    """Those lines as one."""
    return "; ".join(last_errors()) or "no reason given"


@contextlib.contextmanager
def capture_log() -> Iterator[list[str]]:
    """Everything llama.cpp says while it lasts, in pieces as they come."""
    pieces: list[str] = []
    _listeners().append(pieces)
    try:
        yield pieces
    finally:
        _listeners().remove(pieces)


@functools.cache
def _listeners() -> list[list[str]]:
    """Who wants to hear all of llama.cpp's log."""
    return []


@functools.cache
def load_library() -> Any:
    """Import llama_cpp once and take over its log, which would otherwise go to stderr.

    Cached because llama.cpp keeps the callback's address for as long as the process lives.
    """
    try:
        library = importlib.import_module("llama_cpp")
    except ImportError as error:
        raise DependencyError(
            "llama.cpp: the package llama-cpp-python is not installed; it runs the exported file. "
            "Run `pip install 'aird-mlx[llama]'`."
        ) from error

    @library.llama_log_callback  # type: ignore[untyped-decorator]
    def collect(level: int, text: bytes, _: ctypes.c_void_p) -> None:
        piece = text.decode("utf-8", errors="replace")
        for listener in _listeners():
            listener.append(piece)
        line = piece.strip()
        if level == ERROR_LEVEL and line:
            last_errors().append(line)

    library.llama_log_set(collect, ctypes.c_void_p(0))
    library.llama_backend_init()
    library.__dict__["_log_callback_of_aird_mlx"] = collect
    return library
