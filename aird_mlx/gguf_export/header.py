"""The header of a GGUF file: every key, and name, shape and type of every tensor. Source: GGUF v3."""

from __future__ import annotations

from collections.abc import Mapping

import gguf
import numpy as np

from aird_mlx.errors import ExportError
from aird_mlx.gguf_export import general, tokenizer
from aird_mlx.gguf_export.hyperparameters import write_keys
from aird_mlx.gguf_export.outtypes import Kind
from aird_mlx.gguf_export.preparation import Prepared

EXTRA_PREFIX = "aird."

Value = str | int | float | bool


def describe(prepared: Prepared, name: str | None, extra: Mapping[str, Value]) -> gguf.GGUFWriter:
    """A writer with every key and tensor header.

    Args:
        prepared: what the file is to be.
        name: for ``general.name``; None: as the model's files say.
        extra: see `add_extra_metadata`.

    Raises:
        ExportError: as `add_extra_metadata`.
    """
    plan = prepared.plan
    writer = gguf.GGUFWriter(None, prepared.hyperparameters.architecture)
    write_keys(writer, prepared.family.keys, prepared.hyperparameters)
    tokenizer.add_vocabulary(writer, prepared.vocabulary)
    add_extra_metadata(writer, extra)
    for name_of_extra, values in prepared.extra.items():
        writer.add_tensor_info(name_of_extra, values.shape, values.dtype, values.nbytes, Kind.F32)
    for planned in plan:
        writer.add_tensor_info(
            planned.name, planned.shape, np.dtype(np.float32), planned.size_bytes, raw_dtype=planned.type
        )
    strips = prepared.vocabulary.strips_as_phi_3
    general.add_general(writer, prepared.folder, name, prepared.wanted.file_type, strips_as_phi_3=strips)
    return writer


def add_extra_metadata(writer: gguf.GGUFWriter, extra: Mapping[str, Value]) -> None:
    """Write the project's own keys: strings, whole numbers (64 bit), floats (64 bit) and booleans.

    Raises:
        ExportError: a key does not start with ``aird.``, or a value is of another type; llama.cpp's interface
            reads no arrays.
    """
    kinds = {
        bool: gguf.GGUFValueType.BOOL,
        str: gguf.GGUFValueType.STRING,
        int: gguf.GGUFValueType.INT64,
        float: gguf.GGUFValueType.FLOAT64,
    }
    for key, value in extra.items():
        if not key.startswith(EXTRA_PREFIX) or type(value) not in kinds:
            raise ExportError(
                f"gguf: metadata {key!r} of type {type(value).__name__}; a key that starts with {EXTRA_PREFIX} and a "
                "string, number or boolean are needed. Rename it, or write it as text."
            )
        writer.add_key_value(key, value, kinds[type(value)])
