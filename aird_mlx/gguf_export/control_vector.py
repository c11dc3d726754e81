"""The refusal direction as a llama.cpp control vector: a constant added to the residual stream of every token.

A blunt tool. It projects nothing and knows no prompt: what makes harmful prompts be refused makes harmless ones be
refused too. It is for an emergency in which nothing else can be deployed; the repair is what this project is for.
Source: ``common_control_vector_load`` of llama.cpp's ``common/common.cpp``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

from aird_mlx.errors import ExportError
from aird_mlx.gguf_export.header import Value, add_extra_metadata
from aird_mlx.gguf_export.keys import encode_keys
from aird_mlx.gguf_export.outtypes import Kind
from aird_mlx.gguf_export.preparation import prepare
from aird_mlx.gguf_export.stream import whole_gguf, write_tensors


def export_control_vector(
    folder: Path, vector: np.ndarray, layer: int, outfile: Path, extra_metadata: Mapping[str, Value] | None = None
) -> None:
    """Write a vector that llama.cpp adds to the input of one block: ``--control-vector FILE``.

    Args:
        folder: of a model of the same architecture.
        vector: ``[hidden]``, as long as it is to be added.
        layer: the block whose input it is added to. llama.cpp adds to outputs, and never to the first block's.
        outfile: must not exist; written under a temporary name first.
        extra_metadata: further keys, each starting with ``aird.``.

    Raises:
        ExportError: ``outfile`` exists or cannot be written, or the layer is one that llama.cpp cannot add to.
    """
    if os.path.lexists(outfile):
        raise ExportError(f"control vector: {outfile} exists already; a new file is needed. Remove it.")
    prepared = prepare(folder, "f32")
    blocks = prepared.hyperparameters.blocks
    if not 2 <= layer <= blocks:
        raise ExportError(
            f"control vector: the direction is at layer {layer}; llama.cpp adds from 2 to {blocks}. Use the repair."
        )
    values = np.ascontiguousarray(vector, dtype=np.float32)
    writer = gguf.GGUFWriter(None, "controlvector")
    writer.add_string("controlvector.model_hint", prepared.hyperparameters.architecture)
    writer.add_uint32("controlvector.layer_count", blocks)
    add_extra_metadata(writer, extra_metadata or {})
    writer.add_tensor_info(
        f"direction.{layer - 1}", values.shape, np.dtype(np.float32), values.nbytes, raw_dtype=Kind.F32
    )
    with whole_gguf(outfile, values.nbytes + (1 << 16)) as partial:
        write_tensors(writer, encode_keys(writer.kv_data[0]), partial, [[values]])
