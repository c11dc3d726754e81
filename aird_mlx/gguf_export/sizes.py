"""What a model takes on disk: as the MLX folder it is, as GGUF files, and if its zeros were packed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from aird_mlx.errors import AirdError
from aird_mlx.gguf_export.export_plan import figures_of_tensors
from aird_mlx.gguf_export.preparation import check_exportable, prepare

# Types that need no llama.cpp to plan: a plain one, and what keeps zeros at eight and at four bits.
PLANNED_TYPES = ("f16", "q8_0", "q4_0")


def file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of the weights in a complete MLX folder, and of the GGUF files it could be exported as, if it can be."""
    sizes = {"mlx": sum(path.stat().st_size for path in folder.glob("model*.safetensors"))}
    try:
        check_exportable(folder, "f32")  # reads the tokenizer too, once for all types
        for outtype in PLANNED_TYPES:
            sizes[f"gguf {outtype}"] = sum(one.size_bytes for one in figures_of_tensors(prepare(folder, outtype)))
    except AirdError:
        pass
    return sizes


def packed_bytes(stored: int, tensors: Iterable[tuple[int, float, float]]) -> int:
    """An estimate of ``stored`` bytes with the zeros packed: a bit for each weight, and those that are not zero.

    No format that MLX or llama.cpp reads packs them.

    Args:
        stored: bytes of all weights.
        tensors: of those with zeros the number of weights, the share of zeros, and the bits of a weight.

    >>> packed_bytes(1000, [(400, 0.5, 16.0)])
    650
    """
    saved = sum(weights * max(0.0, zeros * bits - 1.0) for weights, zeros, bits in tensors)
    return int(stored - saved / 8)
