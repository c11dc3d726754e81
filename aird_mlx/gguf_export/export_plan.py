"""What an export would write, tensor by tensor: without a file, and before one.

Of llama.cpp's own types its quantizer is asked, which is shown a file of the right size without a weight in it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aird_mlx.gguf_export.header import describe
from aird_mlx.gguf_export.imatrix import Imatrix, Importance
from aird_mlx.gguf_export.llama_quantizer import Order, find_mixture
from aird_mlx.gguf_export.outtypes import Kind, check_zero_exact
from aird_mlx.gguf_export.preparation import Prepared, prepare
from aird_mlx.gguf_export.stream import write_outline
from aird_mlx.libllama import is_available


@dataclass(frozen=True)
class TensorFigures:
    """One tensor of a file to be: ``shape`` is ``[out, in]`` or ``[out]``, ``type`` GGML's name in lower case."""

    name: str
    shape: tuple[int, ...]
    type: str
    size_bytes: int


@dataclass(frozen=True)
class ExportPlan:
    """What an export would write: the type of most weights, every tensor, and what has to be said about it."""

    outtype: str
    tensors: tuple[TensorFigures, ...]
    notes: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """Of all tensors together, without padding and metadata."""
        return sum(tensor.size_bytes for tensor in self.tensors)


def plan_export(
    folder: Path,
    outtype: str,
    *,
    embedding_type: str | None = None,
    output_type: str | None = None,
    imatrix: Imatrix | None = None,
    zero_exact: bool = False,
) -> ExportPlan:
    """Say what `export_gguf` would write, tensor by tensor; of the weights at most a sample is read.

    Raises:
        AirdError: as `export_gguf` would, but for what only the weights show.
    """
    prepared = prepare(folder, outtype, embedding_type, output_type)
    if zero_exact:
        check_zero_exact(prepared.wanted)
    mixture = None if prepared.wanted.native else _find_mixture(prepared, imatrix)
    return ExportPlan(prepared.wanted.name, figures_of_tensors(prepared, mixture), prepared.notes)


def quantized_bytes(prepared: Prepared, imatrix: Imatrix | None) -> int:
    """Of the tensors that llama.cpp's quantizer will write; older programs cannot say, and it is an upper bound."""
    if not is_available():
        return prepared.size_bytes
    return sum(one.size_bytes for one in figures_of_tensors(prepared, _find_mixture(prepared, imatrix)))


def figures_of_tensors(
    prepared: Prepared, mixture: Mapping[str, Kind | None] | None = None
) -> tuple[TensorFigures, ...]:
    """Every tensor in its place; llama.cpp's quantizer writes them in the order of its ``mixture``."""
    found = [TensorFigures(one, values.shape, "f32", values.nbytes) for one, values in prepared.extra.items()]
    for planned in prepared.plan:
        kind = (mixture or {}).get(planned.name) or planned.type
        found.append(TensorFigures(planned.name, planned.shape, kind.name.lower(), planned.bytes_as(kind)))
    places = {name: place for place, name in enumerate(mixture or ())}
    return tuple(sorted(found, key=lambda one: places.get(one.name, len(places))))


def _find_mixture(prepared: Prepared, imatrix: Imatrix | None) -> dict[str, Kind | None]:
    """What llama.cpp's quantizer would make of the file; it is shown the header alone."""
    if imatrix is None and prepared.wanted.needs_imatrix:  # that there is one decides, not what is in it
        ones = Importance(np.ones((1, 1), dtype=np.float32), np.ones(1, dtype=np.float32))
        imatrix = Imatrix({prepared.plan[0].name: ones}, (), 0, 0)
    order = Order(prepared.wanted, prepared.choice.embedding_type, prepared.choice.output_type, imatrix)
    with tempfile.TemporaryDirectory() as temporary:
        outline = Path(temporary) / "outline.gguf"
        write_outline(describe(prepared, "outline", {}), outline, prepared.size_bytes)
        return find_mixture(outline, order)
