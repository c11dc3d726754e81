"""llama.cpp's library, loaded once, and what it says: its log is its only way to give a reason. And its quantizer.

It comes with llama-cpp-python (an optional package), of which only the low-level interface is used. Knows nothing of
what it is given, and imports nothing that a process which only quantizes would have to wait for.
Source: ``llama_model_quantize`` in ``llama.h``.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aird_mlx.errors import DependencyError

if TYPE_CHECKING:
    import numpy as np

NOT_INSTALLED = "llama-cpp-python is not installed (pip install 'aird-mlx[llama]')"
ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR
LONGEST_VALUE = 127  # bytes of a text that llama.cpp lets a caller add
CHILD = f"from {__name__} import main; main()"


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


@dataclass(frozen=True)
class Quantizing:
    """One call of llama.cpp's quantizer, in plain values.

    Attributes:
        source: a GGUF file in f32, f16 or bf16.
        target: the file to write; it is overwritten.
        file_type: of llama.cpp's ``llama_ftype``.
        embedding_type, output_type: of these two tensors, of ``ggml_type``; None leaves them to llama.cpp.
        imatrix: per tensor what errors are weighed by, float32; None: all inputs alike.
        imatrix_facts: what the file says of that, under ``quantize.imatrix``.
    """

    source: str
    target: str
    file_type: int
    embedding_type: int | None = None
    output_type: int | None = None
    imatrix: Mapping[str, np.ndarray] | None = None
    imatrix_facts: Mapping[str, str | int] = field(default_factory=dict)


def run_quantizer(job: Quantizing, *, dry_run: bool = False) -> tuple[int, str]:
    """llama.cpp's status, 0 if it is done, and all it said; a dry run reads the header alone, and writes nothing."""
    library = load_library()
    settings = library.llama_model_quantize_default_params()
    settings.ftype = job.file_type
    settings.nthread = os.cpu_count() or 1
    settings.dry_run = dry_run
    if job.embedding_type is not None:
        settings.token_embedding_type = job.embedding_type
    if job.output_type is not None:
        settings.output_tensor_type = job.output_type
    kept = None if job.imatrix is None else _give_imatrix(library, settings, job.imatrix, job.imatrix_facts)
    with capture_log() as log:
        status = library.llama_model_quantize(job.source.encode(), job.target.encode(), settings)
    del kept  # what ``settings`` points to
    return int(status), "".join(log)


def run_quantizer_apart(job: Quantizing) -> tuple[int, str]:
    """`run_quantizer` in a process of its own, which can be interrupted, as the library cannot."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=pickle.dumps(job),
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONSAFEPATH": "1"},
    )
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


def main() -> None:
    """The child: quantizes what it is told on stdin, and says on stdout what llama.cpp says."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    status, log = run_quantizer(pickle.load(sys.stdin.buffer))
    print(log)
    sys.exit(status != 0)


def _give_imatrix(
    library: Any, settings: Any, imatrix: Mapping[str, np.ndarray], facts: Mapping[str, str | int]
) -> list[object]:
    """Let ``settings`` point to an importance matrix, and to the keys by which the file names it.

    Returns:
        What must live until the quantizer is done.
    """
    means = [(tensor.encode(), values) for tensor, values in imatrix.items()]
    entries = (library.llama_model_imatrix_data * (len(means) + 1))()  # the last, empty one ends it
    for entry, (tensor, values) in zip(entries, means, strict=False):
        entry.name, entry.size = tensor, values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    keys = (library.llama_model_kv_override * (len(facts) + 1))()
    for key, (word, value) in zip(keys, facts.items(), strict=False):
        key.key = f"quantize.imatrix.{word}".encode()
        if isinstance(value, str):
            key.tag = library.LLAMA_KV_OVERRIDE_TYPE_STR
            key.value.val_str = value.encode()[:LONGEST_VALUE].decode(errors="ignore").encode()
        else:
            key.tag, key.value.val_i64 = library.LLAMA_KV_OVERRIDE_TYPE_INT, value
    settings.imatrix, settings.kv_overrides = entries, keys
    return [means, entries, keys]
