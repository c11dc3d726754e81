"""The types a GGUF file can be written in: their names, their blocks, and which MLX quantization each holds exactly.

A table and the questions asked of it; knows no weights and no files. ``native`` types are written by this project,
the others by llama.cpp's own quantizer. Source: ``llama_ftype`` in ``llama.h`` and GGML's type table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gguf

from aird_mlx.errors import ExportError, UsageError

Kind = gguf.GGMLQuantizationType
Ftype = gguf.LlamaFileType

AUTO = "auto"


@dataclass(frozen=True)
class OutType:
    """One type of file.

    Attributes:
        name: as in ``--outtype``.
        kind: the block type of most tensors.
        file_type: what ``general.file_type`` says.
        native: written here; otherwise by llama.cpp's quantizer, which mixes types.
        keeps_zeros: a pruned weight is exactly zero when it is decoded, in every block type of the mixture.
        can_keep_zeros: written with an exact zero when asked to, it does too (`zero_exact`).
        needs_imatrix: llama.cpp's quantizer refuses to write it without one.
    """

    name: str
    kind: Kind
    file_type: Ftype
    native: bool = True
    keeps_zeros: bool = True
    can_keep_zeros: bool = False
    needs_imatrix: bool = False


OUTTYPES = {
    one.name: one
    for one in (
        OutType("f32", Kind.F32, Ftype.ALL_F32),
        OutType("f16", Kind.F16, Ftype.MOSTLY_F16),
        OutType("bf16", Kind.BF16, Ftype.MOSTLY_BF16),
        OutType("q8_0", Kind.Q8_0, Ftype.MOSTLY_Q8_0),
        OutType("q5_0", Kind.Q5_0, Ftype.MOSTLY_Q5_0),
        OutType("q5_1", Kind.Q5_1, Ftype.MOSTLY_Q5_1, keeps_zeros=False, can_keep_zeros=True),
        OutType("q4_0", Kind.Q4_0, Ftype.MOSTLY_Q4_0),
        OutType("q4_1", Kind.Q4_1, Ftype.MOSTLY_Q4_1, keeps_zeros=False, can_keep_zeros=True),
        OutType("mxfp4", Kind.MXFP4, Ftype.MOSTLY_MXFP4_MOE),
        OutType("nvfp4", Kind.NVFP4, Ftype.MOSTLY_NVFP4),
        OutType("tq1_0", Kind.TQ1_0, Ftype.MOSTLY_TQ1_0),
        OutType("tq2_0", Kind.TQ2_0, Ftype.MOSTLY_TQ2_0),
        OutType("q6_k", Kind.Q6_K, Ftype.MOSTLY_Q6_K, native=False),
        OutType("q5_k_m", Kind.Q5_K, Ftype.MOSTLY_Q5_K_M, native=False, keeps_zeros=False),
        OutType("q5_k_s", Kind.Q5_K, Ftype.MOSTLY_Q5_K_S, native=False, keeps_zeros=False),
        OutType("q4_k_m", Kind.Q4_K, Ftype.MOSTLY_Q4_K_M, native=False, keeps_zeros=False),
        OutType("q4_k_s", Kind.Q4_K, Ftype.MOSTLY_Q4_K_S, native=False, keeps_zeros=False),
        OutType("q3_k_l", Kind.Q3_K, Ftype.MOSTLY_Q3_K_L, native=False, keeps_zeros=False),
        OutType("q3_k_m", Kind.Q3_K, Ftype.MOSTLY_Q3_K_M, native=False, keeps_zeros=False),
        OutType("q3_k_s", Kind.Q3_K, Ftype.MOSTLY_Q3_K_S, native=False),
        OutType("q2_k", Kind.Q2_K, Ftype.MOSTLY_Q2_K, native=False, keeps_zeros=False),
        OutType("q2_k_s", Kind.Q2_K, Ftype.MOSTLY_Q2_K_S, native=False, keeps_zeros=False, needs_imatrix=True),
        OutType("iq4_nl", Kind.IQ4_NL, Ftype.MOSTLY_IQ4_NL, native=False, keeps_zeros=False),
        OutType("iq4_xs", Kind.IQ4_XS, Ftype.MOSTLY_IQ4_XS, native=False, keeps_zeros=False),
        OutType("iq3_m", Kind.IQ3_S, Ftype.MOSTLY_IQ3_M, native=False, keeps_zeros=False),
        OutType("iq3_s", Kind.IQ3_S, Ftype.MOSTLY_IQ3_S, native=False, keeps_zeros=False),
        OutType("iq3_xs", Kind.IQ3_S, Ftype.MOSTLY_IQ3_XS, native=False, keeps_zeros=False, needs_imatrix=True),
        OutType("iq3_xxs", Kind.IQ3_XXS, Ftype.MOSTLY_IQ3_XXS, native=False, keeps_zeros=False, needs_imatrix=True),
        OutType("iq2_m", Kind.IQ2_S, Ftype.MOSTLY_IQ2_M, native=False, keeps_zeros=False, needs_imatrix=True),
        OutType("iq2_s", Kind.IQ2_XS, Ftype.MOSTLY_IQ2_S, native=False, keeps_zeros=False, needs_imatrix=True),
        OutType("iq2_xs", Kind.IQ2_XS, Ftype.MOSTLY_IQ2_XS, native=False, keeps_zeros=False, needs_imatrix=True),
        OutType("iq2_xxs", Kind.IQ2_XXS, Ftype.MOSTLY_IQ2_XXS, native=False, keeps_zeros=False, needs_imatrix=True),
        OutType("iq1_m", Kind.IQ1_M, Ftype.MOSTLY_IQ1_M, native=False, keeps_zeros=False, needs_imatrix=True),
        OutType("iq1_s", Kind.IQ1_S, Ftype.MOSTLY_IQ1_S, native=False, keeps_zeros=False, needs_imatrix=True),
    )
}
NATIVE_KINDS = {one.kind: one.name for one in OUTTYPES.values() if one.native}

# Embedding and output of ternary files stay in 16 bits, as in llama.cpp's converter.
TERNARY = (Kind.TQ1_0, Kind.TQ2_0)

# (mode, bits) of mx.quantize -> the block that holds its codes and scales. A 2- or 3-bit code is a 4-bit code whose
# upper bits are zero.
EXACT = {
    ("affine", 2): Kind.Q4_1,
    ("affine", 3): Kind.Q4_1,
    ("affine", 4): Kind.Q4_1,
    ("affine", 5): Kind.Q5_1,
    ("mxfp4", 4): Kind.MXFP4,
    ("nvfp4", 4): Kind.NVFP4,
}
# Where no block is exact, these are measured against each other; larger ones than 8.5 bits would give up the point.
NEAREST = (Kind.Q8_0, Kind.Q5_1, Kind.Q5_0, Kind.Q4_1, Kind.Q4_0, Kind.MXFP4)

STORED_KINDS = {"F32": Kind.F32, "F16": Kind.F16, "BF16": Kind.BF16}


def find_outtype(name: str) -> OutType:
    """The type of that name.

    Raises:
        ExportError: there is none.

    >>> find_outtype("q4_1").kind.name
    'Q4_1'
    """
    if name not in OUTTYPES:
        raise ExportError(
            f"gguf: outtype {name!r}; one of {AUTO}, {', '.join(OUTTYPES)} is needed. Choose one of these."
        )
    return OUTTYPES[name]


def find_matrix_type(name: str, option: str, native: bool) -> Kind:
    """The block type of that name for one matrix, the embedding for example.

    Args:
        name: as given.
        option: what it was given for.
        native: of a file that this project writes, which has other types than llama.cpp's quantizer.

    Raises:
        UsageError: there is none.
    """
    able = [one.name for one in OUTTYPES.values() if one.native or not native]
    if name not in able:
        raise UsageError(f"gguf: {option} {name!r}; one of {', '.join(able)} is needed. Choose one of these.")
    return OUTTYPES[name].kind


def check_zero_exact(outtype: OutType) -> None:
    """Find out whether a pruned weight can stay exactly zero in this type.

    Raises:
        UsageError: it cannot.
    """
    if not (outtype.keeps_zeros or outtype.can_keep_zeros):
        able = ", ".join(one.name for one in OUTTYPES.values() if one.keeps_zeros or one.can_keep_zeros)
        raise UsageError(
            f"gguf: --zero-exact and outtype {outtype.name}, whose blocks have no exact zero; one of {able} is needed. "
            "Choose one of these."
        )


def scheme_of(quantization: Mapping[str, Any]) -> tuple[str, int]:
    """Mode and bits of an MLX quantization, ``("affine", 4)`` for example."""
    return str(quantization.get("mode", "affine")), int(quantization["bits"])


def block_length(kind: Kind) -> int:
    """How many neighbouring weights of a row share a block."""
    return int(gguf.GGML_QUANT_SIZES[kind][0])
