"""What a user has to know about the weights of an exported file, in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from aird_mlx.gguf_export.choice import TypeChoice
from aird_mlx.gguf_export.outtypes import NEAREST, OUTTYPES, Kind, OutType, block_length, scheme_of
from aird_mlx.gguf_export.tally import Tally
from aird_mlx.gguf_export.tensors import PlannedTensor

PRUNED = 0.05  # a smaller share of weights is not worth a word, pruned or made zero
KEPT = 0.98  # share of the zeros that must be left
VANISHED = 0.001  # share of weights too small for the type


def notes_on_plan(plan: Sequence[PlannedTensor], choice: TypeChoice, wanted: OutType) -> list[str]:
    """Which MLX-quantized weights are taken over exactly, which are not, and which rows do not fit the type."""
    notes = []
    groups = Counter(
        (planned.is_exact, *scheme_of(planned.quantization), planned.type.name.lower(), _is_float32(planned, choice))
        for planned in plan
        if planned.quantization is not None
    )
    for (exact, mode, bits, kind, is_float32), count in groups.items():
        scheme = mode if mode.endswith(str(bits)) else f"{mode} {bits}-bit"
        if exact:
            kept = "codes, and scales as float16 holds them" if is_float32 else "codes and scales"
            notes.append(f"{count} MLX-quantized tensors ({scheme}) keep their {kept}, as {kind}")
        else:
            notes.append(
                f"{count} MLX-quantized tensors ({scheme}) were dequantized and written as "
                f"{kind if wanted.native else wanted.name}"
            )
    for (mode, bits), (nearest, error) in choice.nearest.items():
        tried = ", ".join(one.name.lower() for one in NEAREST)
        notes.append(
            f"no block holds {mode} {bits}-bit codes exactly: {nearest.name.lower()} is the nearest of {tried} "
            f"(relative error {error:.2g} on a sample)"
        )
    length = block_length(wanted.kind)
    odd = [planned.name for planned in plan if len(planned.shape) == 2 and planned.shape[-1] % length]
    if odd and not wanted.native:
        notes.append(
            f"{len(odd)} tensors have rows that do not divide into blocks of {length}; llama.cpp gives them a larger "
            f"type, first {odd[0]}"
        )
    if choice.fallbacks:
        notes.append(
            f"{len(choice.fallbacks)} tensors have rows that do not divide into the blocks of their type and are f16, "
            f"first {choice.fallbacks[0]}"
        )
    return notes


def _is_float32(planned: PlannedTensor, choice: TypeChoice) -> bool:
    """Whether the scales of an MLX-quantized weight are stored as float32, which a block of GGML has no room for."""
    scales = choice.stored.get(planned.source.removesuffix(".weight") + ".scales")
    return scales is not None and scales.dtype == "F32"


def notes_on_writing(tally: Tally, wanted: OutType) -> list[str]:
    """Scales that were rounded, and zeros that pruning made and the type does not keep."""
    notes = []
    if tally.inexact_scales:
        notes.append(
            f"{tally.inexact_scales} of {tally.scales} scales and biases are no float16 numbers and were rounded: the "
            "weights are not bit for bit MLX's"
        )
    if tally.anew:
        notes.append(
            f"{100 * tally.anew / tally.weights:.1f} % of the weights were quantized anew so that zeros stay exactly "
            "zero: float16 does not hold the scales that their codes have in MLX"
        )
    if tally.pruned >= PRUNED and tally.retention < KEPT:
        keep = ", ".join(one.name for one in OUTTYPES.values() if one.keeps_zeros)
        can = " and ".join(one.name for one in OUTTYPES.values() if one.can_keep_zeros)
        notes.append(
            f"{wanted.name} loses zeros, and pruning with them: {100 * tally.retention:.1f} % of the zeros are still "
            f"exactly zero; {keep} keep the zeros, {can} with --zero-exact"
        )
    if wanted.kind == Kind.F16 and tally.sparsity - tally.sparsity_before > VANISHED:
        notes.append(
            f"{100 * (tally.sparsity - tally.sparsity_before):.1f} % of the weights are too small for float16 and "
            "became zero; bf16 and f32 hold them"
        )
    return notes
