"""The residual stream of a GGUF file while llama.cpp runs it: read as it passes by, in the evaluation that generates.

llama.cpp asks a callback about every node of its graph and lets it look at the results it wants; nothing is computed
twice and the logits stay the same to the bit. Knows nodes by their names: ``l_out-N`` is the output of block N, which
is the input of block N + 1, so layer l (as everywhere in this project) is ``l_out-(l - 1)``.
Source: ``cb_eval`` of ``llama.h``, ``ggml_backend_sched_eval_callback`` of ``ggml-backend.h``.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from aird_mlx.errors import DependencyError

NODE = b"l_out-"


class ResidualTap:
    """Keeps the residual stream at some layers of the batch that was decoded last.

    Give it to `LlamaRuntime`; it must live as long as the context does. The last block computes only the tokens whose
    logits are wanted, but its output is the input of no block, so every layer has all tokens. llama.cpp may split a
    batch of several sequences and order its tokens anew: rows are in the batch's order for one sequence only.

    Args:
        library: the module llama_cpp.
        layers: inputs of these blocks, each at least 1.
    """

    def __init__(self, library: Any, layers: Collection[int]) -> None:
        self.layers = frozenset(layers)
        self._wanted = {NODE + str(layer - 1).encode(): layer for layer in layers}
        self._rows: dict[int, list[np.ndarray]] = {}
        ggml = _load_ggml(str(Path(library.__file__).parent / "lib"))
        name_of, layer_of = ggml.ggml_get_name, self._wanted.get

        @library.llama_cpp.ggml_backend_sched_eval_callback  # type: ignore[untyped-decorator]
        def look(tensor: int, asks: bool, _: int) -> bool:
            layer = layer_of(name_of(tensor))
            if asks:
                return layer is not None
            if layer is not None:
                rows = np.empty(ggml.ggml_nbytes(tensor) // 4, dtype=np.float32)
                ggml.ggml_backend_tensor_get(tensor, rows.ctypes.data, 0, rows.nbytes)
                self._rows.setdefault(layer, []).append(rows)
            return True  # go on

        self.callback = look

    def clear(self) -> None:
        """Forget what was seen."""
        self._rows.clear()

    def rows(self, hidden: int) -> dict[int, np.ndarray]:
        """By layer ``[token, hidden]`` float32 of everything decoded since `clear`."""
        return {layer: np.concatenate(rows).reshape(-1, hidden) for layer, rows in self._rows.items()}


@functools.cache
def _load_ggml(folder: str) -> ctypes.PyDLL:
    """The library that llama.cpp's tensors belong to, loaded already under the same name.

    It is called at every node, so calls keep the interpreter's lock: giving it up and waiting for it again would cost
    a busy server more than the rest of the callback.
    """
    for name in ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll"):
        path = Path(folder) / name
        if path.exists():
            ggml = ctypes.PyDLL(str(path))
            break
    else:
        raise DependencyError(
            f"llama.cpp: there is no libggml-base in {folder}; the residual stream is read through it. "
            "Install llama-cpp-python again."
        )
    ggml.ggml_get_name.restype, ggml.ggml_get_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    ggml.ggml_nbytes.restype, ggml.ggml_nbytes.argtypes = ctypes.c_size_t, [ctypes.c_void_p]
    ggml.ggml_backend_tensor_get.restype = None
    ggml.ggml_backend_tensor_get.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    return ggml
