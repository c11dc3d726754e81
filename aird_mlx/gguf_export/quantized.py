"""Which weights of a folder MLX quantized, how, and the shapes they have when they are decoded.

Knows headers and the config's ``quantization`` entry; decodes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from aird_mlx.errors import ModelError
from aird_mlx.gguf_export.outtypes import scheme_of
from aird_mlx.gguf_export.stored import ARRAYS, StoredTensor


def as_mlx_quantizes(
    stored: Mapping[str, StoredTensor], quantization: Mapping[str, Any] | None
) -> tuple[dict[str, StoredTensor], Mapping[str, Any] | None]:
    """Headers of Hugging Face's MXFP4 ``_blocks`` and ``_scales`` under the names that MLX gives the same bytes.

    Args:
        stored: headers of a folder.
        quantization: of its config.

    Returns:
        Both, as a folder of MLX would have them.
    """
    if not any(name.endswith("_blocks") for name in stored):
        return dict(stored), quantization
    renamed, settings = {}, {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    for name, tensor in stored.items():
        if name.endswith("_blocks"):  # [.., out, group, 16] bytes -> [.., out, in / 8] words
            shape = (*tensor.shape[:-2], tensor.shape[-2] * tensor.shape[-1] // 4)
            renamed[f"{name.removesuffix('_blocks')}.weight"] = replace(tensor, dtype="U32", shape=shape)
        elif name.endswith("_scales"):
            renamed[f"{name.removesuffix('_scales')}.scales"] = tensor
        else:
            renamed[name] = tensor
    return renamed, settings


def bare_names(stored: Mapping[str, StoredTensor]) -> list[str]:
    """Names of the weights, scales and biases of quantized ones left out."""
    quantized = {name.removesuffix(".scales") for name in stored if name.endswith(".scales")}
    parts = {f"{stem}.{part}" for stem in quantized for part in ("scales", "biases")}
    return [*(name for name in stored if name not in parts), *(
        f"{stem}.weight" for stem in quantized if f"{stem}.weight" not in stored
    )]  # fmt: skip


def quantization_of_tensor(
    source: str, stored: Mapping[str, StoredTensor], quantization: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Settings of one MLX-quantized tensor: the config's, overridden by an entry under its own name."""
    stem = source.removesuffix(".weight")
    if f"{stem}.scales" not in stored:
        return None
    if quantization is None:
        raise ModelError(
            f"model: {stem} is quantized but config.json has no quantization entry; group_size and bits are needed. "
            "Use the config of these weights."
        )
    settings = quantization.get(stem)
    chosen = settings if isinstance(settings, Mapping) else quantization
    kept = {key: chosen[key] for key in ("group_size", "bits", "mode") if chosen.get(key) is not None}
    if "bits" not in kept:
        raise ModelError(f"model: quantization of {stem} has no bits; the export needs it. Use a complete config.json.")
    return kept


def plain_shape(
    source: str, stored: Mapping[str, StoredTensor], quantization: Mapping[str, Any] | None
) -> tuple[int, ...]:
    """The shape of a weight when it is decoded.

    Raises:
        ModelError: a part is missing, or does not fit the settings.
    """
    if source not in stored:  # scales or biases without their weight
        raise ModelError(f"model: no tensor {source} beside its scales; it is needed. Copy the folder again.")
    shape = stored[source].shape
    if quantization is None:
        return shape
    plain = (*shape[:-1], shape[-1] * 32 // int(quantization["bits"]))  # codes are packed into uint32
    mode, _ = scheme_of(quantization)
    group = int(quantization.get("group_size", 64))
    for part in ("scales", "biases") if mode == "affine" else ("scales",):
        found = stored.get(f"{source.removesuffix('.weight')}.{part}")
        if found is None or found.shape != (*plain[:-1], plain[-1] // group) or found.dtype not in ARRAYS:
            seen = "missing" if found is None else f"{found.shape} {found.dtype}"
            raise ModelError(
                f"model: {part} of {source} are {seen}; {mode} weights {plain} in groups of {group} need one for each "
                "group. Use the config of these weights."
            )
    return plain
