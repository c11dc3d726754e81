"""How to prune, and how to quantize."""

from __future__ import annotations

from dataclasses import dataclass

from aird_mlx.errors import UsageError
from aird_mlx.quantization import check_quantization

CALIBRATION_KINDS = ("harmless", "all")
# The recipe of mixed bits that is ours, among mlx-lm's.
REFUSAL_RECIPE = "refusal"


@dataclass(frozen=True)
class PruningSettings:
    """How to prune.

    Attributes:
        method: of `aird_mlx.pruning.METHODS`.
        sparsity: fraction to remove, in [0, 1); an ``N:M`` pattern rules over it.
        pattern: ``unstructured`` or ``N:M``.
        scope: whether weights compete by ``row`` or by ``matrix``.
        allocation: ``uniform``, or by block: ``owl``, ``safety``.
        calibration_kinds: dialogues it is calibrated on: ``harmless`` as by a stock compressor, or ``all``.
    """

    method: str = "wanda"
    sparsity: float = 0.5
    pattern: str = "unstructured"
    scope: str = "row"
    allocation: str = "uniform"
    calibration_kinds: str = "harmless"


@dataclass(frozen=True)
class QuantizationSettings:
    """How to quantize; see `aird_mlx.quantization.quantize_model`.

    Attributes:
        mode: of `aird_mlx.quantization.MODES`.
        bits, group_size: None for the mode's own.
        mixed: one of mlx-lm's recipes (``mixed_4_6``), which are affine and choose the bits; or `REFUSAL_RECIPE`, see
            `aird_mlx.quantization.favour_writers`, which takes no more room than ``bits``.
    """

    mode: str = "affine"
    bits: int | None = None
    group_size: int | None = None
    mixed: str | None = None


def check_recipe(how: QuantizationSettings) -> tuple[int, int]:
    """Bits and group size, the mode's own where they are None.

    Raises:
        UsageError: what MLX lacks, or a recipe beside bits or another mode than its own.
    """
    found = check_quantization(how.mode, how.bits, how.group_size)
    if how.mixed is not None and (how.mode != "affine" or (how.bits is not None and how.mixed != REFUSAL_RECIPE)):
        seen = f"mode {how.mode}" if how.mode != "affine" else f"{how.bits} bits"
        raise UsageError(
            f"quantize: {seen} with the recipe {how.mixed}; it is affine and chooses the bits itself. Leave one out."
        )
    return found


def quantization_words(how: QuantizationSettings, *, short: bool = False) -> str:
    """How it is quantized, for people (``affine, 4 bits, group 64``) or, short, for file names (``4bit``).

    >>> quantization_words(QuantizationSettings(bits=3)), quantization_words(QuantizationSettings("mxfp4"), short=True)
    ('affine, 3 bits, group 64', 'mxfp4')
    """
    bits, group_size = check_quantization(how.mode, how.bits, how.group_size)
    if how.mixed == REFUSAL_RECIPE:
        return f"{bits}bit-{how.mixed}" if short else f"{how.mixed}, {bits} bits, group {group_size}"
    if how.mixed is not None:
        return how.mixed if short else f"{how.mixed}, group {group_size}"
    if short:
        return f"{bits}bit" if how.mode == "affine" else how.mode
    return f"{how.mode}, {bits} bits, group {group_size}"
