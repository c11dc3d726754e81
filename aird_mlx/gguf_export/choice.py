"""Which type each matrix of a file gets: by the type asked for, its place, its shape, and how it is stored.

Reads a few rows of a weight only where a type is to be chosen by measured error. Knows nothing about writing.
Source: the defaults of llama.cpp's ``convert_hf_to_gguf.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aird_mlx.errors import UsageError
from aird_mlx.gguf_export import blocks, encoding
from aird_mlx.gguf_export.completeness import EMBEDDING, OUTPUT
from aird_mlx.gguf_export.outtypes import (
    AUTO,
    EXACT,
    NEAREST,
    STORED_KINDS,
    TERNARY,
    Kind,
    block_length,
    find_matrix_type,
    find_outtype,
    scheme_of,
)
from aird_mlx.gguf_export.pieces import count_rows
from aird_mlx.gguf_export.stored import StoredTensor

SAMPLE_ROWS = 128


@dataclass
class TypeChoice:
    """Chooses the type of one matrix after the other, and remembers what has to be said about it.

    Attributes:
        outtype: a native type, ``auto``, or one of llama.cpp's; its quantizer then gets the weights without loss.
        stored: headers of the folder.
        embedding_type: of the token embedding; None: as the others, ternary files f16.
        output_type: of the output matrix, likewise.
        fallbacks: names of matrices whose rows do not divide into blocks.
        nearest: per MLX scheme without an exact block the chosen type, and the relative error it was chosen by.
    """

    outtype: str
    stored: Mapping[str, StoredTensor]
    embedding_type: str | None = None
    output_type: str | None = None
    fallbacks: list[str] = field(default_factory=list)
    nearest: dict[tuple[str, int], tuple[Kind, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse unknown names before anything is read."""
        self._wanted = None if self.outtype == AUTO else find_outtype(self.outtype)
        self._native = self._wanted is None or self._wanted.native
        self._special: dict[str, Kind] = {}
        asked = ((EMBEDDING, self.embedding_type, "embedding type"), (OUTPUT, self.output_type, "output type"))
        for place, name, option in asked:
            if name is not None:  # where this project does not write it, llama.cpp's quantizer gets it
                self._special[place] = find_matrix_type(name, option, self._native)

    def choose(
        self, name: str, shape: tuple[int, ...], source: StoredTensor, quantization: Mapping[str, Any] | None
    ) -> Kind:
        """The type of a matrix; see `tensors.plan_tensors`.

        Raises:
            UsageError: llama.cpp's quantizer is to give it a type whose blocks its rows do not divide into.
        """
        if not self._native:
            self._check_rows(name, shape[-1])
            return STORED_KINDS.get(source.dtype, Kind.F32) if quantization is None else Kind.F32
        kind = self._special.get(name) or self._kind_of(name, source, quantization)
        if shape[-1] % block_length(kind):
            self.fallbacks.append(name)
            return Kind.F16
        return kind

    def _check_rows(self, name: str, length: int) -> None:
        """The quantizer takes another type where it chooses itself, and ends the process where it was told one."""
        kind = self._special.get(name, Kind.F32)
        if length % block_length(kind):
            raise UsageError(
                f"gguf: {name} has rows of {length} weights, and {kind.name.lower()} was asked for, in blocks of "
                f"{block_length(kind)}; rows of whole blocks are needed. Choose a type with smaller blocks."
            )

    def _kind_of(self, name: str, source: StoredTensor, quantization: Mapping[str, Any] | None) -> Kind:
        if self._wanted is not None:
            kind = self._wanted.kind
            return Kind.F16 if kind in TERNARY and name in (EMBEDDING, OUTPUT) else kind
        if quantization is None:
            return STORED_KINDS.get(source.dtype, Kind.F32)
        scheme = scheme_of(quantization)
        if scheme in EXACT:
            return EXACT[scheme]
        if scheme not in self.nearest:
            rows = range(min(count_rows(source.shape), SAMPLE_ROWS))
            sample = encoding.read_values(source.name, self.stored, quantization, rows)
            self.nearest[scheme] = find_nearest(sample)
        return self.nearest[scheme][0]


def find_nearest(values: np.ndarray) -> tuple[Kind, float]:
    """The block type of at most 8.5 bits that changes these weights least.

    Args:
        values: ``[out, in]`` float32, rows of a multiple of 32.

    Returns:
        The type, and its relative error ``|decoded - values| / |values|`` (Frobenius).

    >>> find_nearest(np.sin(np.arange(64, dtype=np.float32))[None])[0].name
    'Q8_0'
    """
    errors = {kind: encoding.relative_error(values, blocks.quantize(values, kind), kind) for kind in NEAREST}
    best = min(NEAREST, key=lambda kind: errors[kind])
    return best, errors[best]
