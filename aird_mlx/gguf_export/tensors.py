"""Weights: from the safetensors of an MLX or Hugging Face folder to GGUF tensors, one at a time.

A plan is made from the files' headers alone (names, shapes, types), so everything that can be refused is refused
before a weight is read. Row order: llama.cpp rotates neighbouring pairs for its llama architecture while MLX
rotates half against half, so q and k rows are permuted there, and only there. MLX-quantized weights are
dequantized on the way. Source: llama.cpp's ``conversion/llama.py`` and the safetensors format.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np

from aird_mlx.errors import ExportError, ModelError
from aird_mlx.gguf_export.metadata import Hyperparameters

F32, F16, Q8_0 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.Q8_0
OUTTYPES = {"f32": F32, "f16": F16, "q8_0": Q8_0}
LARGEST_F16 = 65504.0

# name inside a block -> (GGUF name, shape as words of `_sizes`)
BLOCK_LINEARS = {
    "self_attn.q_proj": ("attn_q", "query", "hidden"),
    "self_attn.k_proj": ("attn_k", "key", "hidden"),
    "self_attn.v_proj": ("attn_v", "key", "hidden"),
    "self_attn.o_proj": ("attn_output", "hidden", "query"),
    "mlp.gate_proj": ("ffn_gate", "intermediate", "hidden"),
    "mlp.up_proj": ("ffn_up", "intermediate", "hidden"),
    "mlp.down_proj": ("ffn_down", "hidden", "intermediate"),
}
BLOCK_NORMS = {
    "input_layernorm": ("attn_norm", "hidden"),
    "post_attention_layernorm": ("ffn_norm", "hidden"),
    "self_attn.q_norm": ("attn_q_norm", "head"),
    "self_attn.k_norm": ("attn_k_norm", "head"),
}


@dataclass(frozen=True)
class StoredTensor:
    """One entry of a safetensors header: where it is and what it looks like, not its values."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the GGUF file to be.

    Attributes:
        name: in the GGUF file.
        source: name in the folder, without ``.scales`` and ``.biases`` of a quantized weight.
        shape: ``[out, in]``, or ``[out]``.
        type: how it is written.
        rotated_heads: number of heads whose rows are reordered, 0 for none.
        quantization: keyword arguments of ``mx.dequantize``, None for plain weights.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    type: gguf.GGMLQuantizationType
    rotated_heads: int = 0
    quantization: dict[str, Any] | None = None

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return int(np.prod(self.shape))

    @property
    def is_block_linear(self) -> bool:
        """Whether it is the matrix of a linear inside a block: what pruning prunes."""
        return self.name.startswith("blk.") and len(self.shape) == 2

    @property
    def size_bytes(self) -> int:
        """How many bytes it takes in the file, without padding."""
        block, size = gguf.GGML_QUANT_SIZES[self.type]
        return self.parameters // block * size


def read_stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Read the headers of every safetensors file of a folder; no weight is read.

    Raises:
        ModelError: there is none, one is truncated or not safetensors, or the index names a missing file.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (json.JSONDecodeError, KeyError, AttributeError, UnicodeDecodeError) as error:
            raise ModelError(
                f"model: {index} is not an index ({error}); a weight_map is needed. Copy the file again."
            ) from error
        files = [folder / name for name in names]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"model: {folder} has no *.safetensors; a model folder is needed. Check the path.")
    stored: dict[str, StoredTensor] = {}
    for file in files:
        for tensor in _read_header(file):
            stored[tensor.name] = tensor
    return stored


def plan_tensors(
    stored: Mapping[str, StoredTensor],
    hyperparameters: Hyperparameters,
    outtype: str,
    quantization: Mapping[str, Any] | None = None,
) -> list[PlannedTensor]:
    """Decide every tensor of the GGUF file: its name, shape, type, row order and how its source is stored.

    Args:
        stored: headers of the model folder.
        hyperparameters: of the same folder.
        outtype: f32, f16 or q8_0. One-dimensional tensors are always f32; a matrix whose rows do not divide
            by 32 becomes f16 instead of q8_0.
        quantization: the ``quantization`` entry of an MLX config, None for plain weights.

    Returns:
        In file order: embedding, blocks, output norm, output.

    Raises:
        ExportError: unknown outtype, or a tensor in the folder has no place in the architecture.
        ModelError: a tensor is missing or has another shape than the config says.
    """
    if outtype not in OUTTYPES:
        raise ExportError(f"gguf: outtype {outtype!r}; one of {', '.join(OUTTYPES)} is needed. Choose one of these.")
    sizes = _sizes(hyperparameters)
    bare = {re.sub(r"\.(scales|biases)$", ".weight", name) for name in stored}
    prefix = "" if any(name.startswith("embed_tokens.") for name in bare) else "model."
    left_over = {name for name in bare if not name.endswith(".rotary_emb.inv_freq")}
    plan: list[PlannedTensor] = []

    def take(source: str, name: str, *axes: str, optional: bool = False, rotated_heads: int = 0) -> None:
        if source not in left_over:
            if optional:
                return
            raise ModelError(
                f"model: no tensor {source}; {hyperparameters.model_type} needs it. Copy the folder again."
            )
        left_over.discard(source)
        settings = _quantization_of(source, stored, quantization)
        shape = _plain_shape(source, stored, settings)
        wanted = tuple(sizes.get(axis, shape[0] if shape else 0) for axis in axes)
        if shape != wanted:
            raise ModelError(
                f"model: {source} has shape {shape}; config.json says {wanted}. Use the config of these weights."
            )
        plan.append(PlannedTensor(name, source, shape, _choose_type(shape, outtype), rotated_heads, settings))

    take(f"{prefix}embed_tokens.weight", "token_embd.weight", "vocab", "hidden")
    rotates = hyperparameters.architecture == "llama"
    for block in range(hyperparameters.blocks):
        for part, (name, axis) in BLOCK_NORMS.items():
            is_head_norm = axis == "head"
            if is_head_norm and hyperparameters.model_type != "qwen3":
                continue
            take(f"{prefix}layers.{block}.{part}.weight", f"blk.{block}.{name}.weight", axis)
        for part, (name, out_axis, in_axis) in BLOCK_LINEARS.items():
            heads = {"attn_q": hyperparameters.heads, "attn_k": hyperparameters.kv_heads}.get(name, 0) if rotates else 0
            source, target = f"{prefix}layers.{block}.{part}", f"blk.{block}.{name}"
            take(f"{source}.weight", f"{target}.weight", out_axis, in_axis, rotated_heads=heads)
            take(f"{source}.bias", f"{target}.bias", out_axis, optional=True, rotated_heads=heads)
    take(f"{prefix}norm.weight", "output_norm.weight", "hidden")
    if hyperparameters.tied:
        left_over.discard("lm_head.weight")  # a copy of the embedding that some folders still carry
    else:
        take("lm_head.weight", "output.weight", "vocab", "hidden", optional=hyperparameters.tied is None)
    if left_over:
        raise ExportError(
            f"gguf: {len(left_over)} tensors have no place in {hyperparameters.architecture}, first "
            f"{min(left_over)}; every weight must be written. Use llama.cpp's convert_hf_to_gguf.py for this model."
        )
    rows = [tensor.shape[0] for tensor in plan if tensor.name in ("token_embd.weight", "output.weight")]
    if len(set(rows)) > 1:
        raise ModelError(f"model: embedding and output have {rows} rows; they must agree. Use a consistent folder.")
    return plan


class TensorReader:
    """Reads planned tensors one by one as float32; holds lazy handles, never two tensors' values."""

    def __init__(self, stored: Mapping[str, StoredTensor]) -> None:
        self._stored = stored
        self._lazy: dict[Path, dict[str, mx.array]] = {}

    def read(self, planned: PlannedTensor) -> np.ndarray:
        """The values in GGUF row order, ``planned.shape`` float32.

        Each tensor can be read once: its handle is dropped, so that its memory can go.

        Raises:
            ModelError: the file cannot be read.
            ExportError: a value is not finite, or too large for the type it is to be written in.
        """
        try:
            if planned.quantization is None:
                values = np.array(self._take(planned.source).astype(mx.float32))
            else:
                values = np.array(self._dequantize(planned).astype(mx.float32))
        except RuntimeError as error:
            file = self._stored[planned.source].file
            reason = str(error).splitlines()[0]
            raise ModelError(
                f"model: {planned.source} in {file} cannot be read ({reason}); the whole file is needed. Copy it again."
            ) from error
        _check_range(planned, values)
        return permute_rows(values, planned.rotated_heads) if planned.rotated_heads else values

    def _take(self, name: str) -> mx.array:
        file = self._stored[name].file
        if file not in self._lazy:
            self._lazy[file] = dict(mx.load(str(file)))
        return self._lazy[file].pop(name)

    def _dequantize(self, planned: PlannedTensor) -> mx.array:
        stem = planned.source.removesuffix(".weight")
        scales = self._take(f"{stem}.scales")
        biases = self._take(f"{stem}.biases") if f"{stem}.biases" in self._stored else None
        if biases is not None:  # affine: float32 keeps code * scale + bias exact
            scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        assert planned.quantization is not None
        return mx.dequantize(self._take(planned.source), scales, biases, **planned.quantization)


def permute_rows(values: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows of q or k from half-against-half to neighbouring pairs.

    Args:
        values: ``[heads * head_dim, in]``, or a bias ``[heads * head_dim]``.
        heads: of this matrix (key-value heads for k).

    Returns:
        A new array of the same shape.

    >>> permute_rows(np.arange(8), 2).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def encode_tensor(values: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """The bytes of a tensor: float32 or float16 values, or q8_0 blocks of 34 bytes (f16 scale, 32 int8).

    Args:
        values: float32, ``[out, in]`` or ``[out]``.
        kind: F32, F16 or Q8_0.
    """
    if kind == F32:
        return values.astype(np.float32, copy=False)
    if kind == F16:
        return values.astype(np.float16)
    return np.asarray(gguf.quants.quantize(values, kind))


def count_zeros(encoded: np.ndarray, kind: gguf.GGMLQuantizationType) -> int:
    """How many weights are exactly zero when a runtime decodes what `encode_tensor` gave."""
    return int((np.asarray(gguf.quants.dequantize(encoded, kind)) == 0).sum())


def _check_range(planned: PlannedTensor, values: np.ndarray) -> None:
    if not values.size:
        return
    largest = max(float(values.max()), -float(values.min()))  # NaN and inf come through
    if not np.isfinite(largest):
        count = int(values.size - np.isfinite(values).sum())
        raise ExportError(
            f"gguf: {planned.source} holds {count} values that are not finite; finite weights are needed. "
            "Repair or compress the model again."
        )
    limit = {F16: LARGEST_F16, Q8_0: LARGEST_F16 * 127}.get(planned.type)
    if limit is not None and largest > limit:
        raise ExportError(
            f"gguf: {planned.source} reaches {largest:.6g}; {planned.type.name.lower()} holds at most {limit:g}. "
            "Use outtype f32."
        )


def _choose_type(shape: tuple[int, ...], outtype: str) -> gguf.GGMLQuantizationType:
    if len(shape) < 2:
        return F32
    kind = OUTTYPES[outtype]
    return F16 if kind == Q8_0 and shape[-1] % 32 else kind


def _sizes(hyperparameters: Hyperparameters) -> dict[str, int]:
    """Axis words to lengths; ``vocab`` is left to the embedding itself, which may be padded."""
    return {
        "hidden": hyperparameters.hidden,
        "intermediate": hyperparameters.intermediate,
        "query": hyperparameters.heads * hyperparameters.head_dim,
        "key": hyperparameters.kv_heads * hyperparameters.head_dim,
        "head": hyperparameters.head_dim,
    }


def _quantization_of(
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


def _plain_shape(
    source: str, stored: Mapping[str, StoredTensor], quantization: Mapping[str, Any] | None
) -> tuple[int, ...]:
    if source not in stored:  # scales or biases without their weight
        raise ModelError(f"model: no tensor {source} beside its scales; it is needed. Copy the folder again.")
    shape = stored[source].shape
    if quantization is None:
        return shape
    return (*shape[:-1], shape[-1] * 32 // int(quantization["bits"]))  # codes are packed into uint32


def _read_header(file: Path) -> list[StoredTensor]:
    """Parse 8 bytes of length and that much JSON; check that the file is as long as its offsets say."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            size = file.stat().st_size
            if length > size:
                raise ValueError(f"header of {length} bytes in a file of {size}")
            header = json.loads(opened.read(length))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        if size < 8 + length + end:
            raise ValueError(f"{size} bytes, its header says {8 + length + end}")
        return [StoredTensor(name, file, entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"model: {file} cannot be read ({error}); a whole safetensors file is needed. Copy it again."
        ) from error
