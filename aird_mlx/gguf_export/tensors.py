"""The plan of a GGUF file: which tensor of the folder goes where, in which row order and how it is stored.

Made from the files' headers alone (names, shapes, types), so everything that can be refused is refused before a
weight is read. Row order: llama.cpp rotates neighbouring pairs for its llama architecture while MLX rotates half
against half, so q and k rows are permuted there, and only there. Source: llama.cpp's ``conversion/llama.py``.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gguf

from aird_mlx.errors import ExportError, ModelError
from aird_mlx.gguf_export.metadata import Hyperparameters
from aird_mlx.gguf_export.outtypes import EXACT, NATIVE_KINDS, Kind, block_length, scheme_of
from aird_mlx.gguf_export.stored import ARRAYS, StoredTensor

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"

# From GGUF name, shape, header and MLX quantization of a matrix to the type it is written in.
Choose = Callable[[str, tuple[int, ...], StoredTensor, Mapping[str, Any] | None], Kind]

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
    type: Kind
    rotated_heads: int = 0
    quantization: dict[str, Any] | None = None

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def is_exact(self) -> bool:
        """Whether it takes over the codes and scales of an MLX-quantized weight."""
        return (
            self.quantization is not None
            and EXACT.get(scheme_of(self.quantization)) == self.type
            and self.shape[-1] % block_length(self.type) == 0
        )

    @property
    def is_block_linear(self) -> bool:
        """Whether it is the matrix of a linear inside a block: what pruning prunes."""
        return is_block_linear(self.name, self.shape)

    @property
    def size_bytes(self) -> int:
        """How many bytes it takes in the file, without padding."""
        return self.bytes_as(self.type)

    def bytes_as(self, kind: Kind) -> int:
        """How many bytes it would take in another type."""
        block, size = gguf.GGML_QUANT_SIZES[kind]
        return int(self.parameters // block * size)


def is_block_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a GGUF tensor is the matrix of a linear inside a block."""
    return name.startswith("blk.") and len(shape) == 2


def common_type(plan: list[PlannedTensor]) -> str:
    """The name of the type that most weights of a plan have."""
    counts: Counter[Kind] = Counter()
    for planned in plan:
        counts[planned.type] += planned.parameters
    return NATIVE_KINDS[counts.most_common(1)[0][0]]


def plan_tensors(
    stored: Mapping[str, StoredTensor],
    hyperparameters: Hyperparameters,
    choose: Choose,
    quantization: Mapping[str, Any] | None = None,
) -> list[PlannedTensor]:
    """Decide every tensor of the GGUF file: its name, shape, type, row order and how its source is stored.

    Args:
        stored: headers of the model folder.
        hyperparameters: of the same folder.
        choose: the type of a matrix; one-dimensional tensors are always f32.
        quantization: the ``quantization`` entry of an MLX config, None for plain weights.

    Returns:
        In file order: embedding, blocks, output norm, output.

    Raises:
        ExportError: a tensor in the folder has no place in the architecture, or is stored in a type that is no number.
        ModelError: a tensor is missing or has another shape than the config says.
    """
    sizes = _sizes(hyperparameters)
    bare = {re.sub(r"\.(scales|biases)$", ".weight", name) for name in stored}
    prefix = "" if any(name.startswith("embed_tokens.") for name in bare) else "model."
    left_over = {name for name in bare if not name.endswith(".rotary_emb.inv_freq")}
    plan: list[PlannedTensor] = []
    for place in _places(hyperparameters, prefix):
        if place.source in left_over:
            left_over.remove(place.source)
            plan.append(_plan_tensor(place, sizes, stored, choose, quantization))
        elif not place.optional:
            raise ModelError(
                f"model: no tensor {place.source}; {hyperparameters.model_type} needs it. Copy the folder again."
            )
    if hyperparameters.tied:
        left_over.discard("lm_head.weight")  # a copy of the embedding that some folders still carry
    if left_over:
        raise ExportError(
            f"gguf: {len(left_over)} tensors have no place in {hyperparameters.architecture}, first "
            f"{min(left_over)}; every weight must be written. Use llama.cpp's convert_hf_to_gguf.py for this model."
        )
    rows = [tensor.shape[0] for tensor in plan if tensor.name in (EMBEDDING, OUTPUT)]
    if len(set(rows)) > 1:
        raise ModelError(f"model: embedding and output have {rows} rows; they must agree. Use a consistent folder.")
    return plan


@dataclass(frozen=True)
class _Place:
    """Where a tensor of the folder goes: both names, and its shape as words of `_sizes`."""

    source: str
    name: str
    axes: tuple[str, ...]
    optional: bool = False
    rotated_heads: int = 0


def _places(hyperparameters: Hyperparameters, prefix: str) -> Iterator[_Place]:
    """All that the architecture has, in file order; names in the folder start with ``prefix``."""
    rotated = {}
    if hyperparameters.architecture == "llama":
        rotated = {"attn_q": hyperparameters.heads, "attn_k": hyperparameters.kv_heads}
    yield _Place(f"{prefix}embed_tokens.weight", EMBEDDING, ("vocab", "hidden"))
    for block in range(hyperparameters.blocks):
        for part, (name, axis) in BLOCK_NORMS.items():
            if axis != "head" or hyperparameters.model_type == "qwen3":
                yield _Place(f"{prefix}layers.{block}.{part}.weight", f"blk.{block}.{name}.weight", (axis,))
        for part, (name, out_axis, in_axis) in BLOCK_LINEARS.items():
            heads = rotated.get(name, 0)
            source, target = f"{prefix}layers.{block}.{part}", f"blk.{block}.{name}"
            yield _Place(f"{source}.weight", f"{target}.weight", (out_axis, in_axis), rotated_heads=heads)
            yield _Place(f"{source}.bias", f"{target}.bias", (out_axis,), optional=True, rotated_heads=heads)
    yield _Place(f"{prefix}norm.weight", "output_norm.weight", ("hidden",))
    if not hyperparameters.tied:
        yield _Place("lm_head.weight", OUTPUT, ("vocab", "hidden"), optional=hyperparameters.tied is None)


def _plan_tensor(
    place: _Place,
    sizes: Mapping[str, int],
    stored: Mapping[str, StoredTensor],
    choose: Choose,
    quantization: Mapping[str, Any] | None,
) -> PlannedTensor:
    """Check that the folder's tensor is what its place needs, and choose its type."""
    source = place.source
    settings = _quantization_of(source, stored, quantization)
    shape = _plain_shape(source, stored, settings)
    wanted = tuple(sizes.get(axis, shape[0] if shape else 0) for axis in place.axes)
    if shape != wanted:
        raise ModelError(
            f"model: {source} has shape {shape}; config.json says {wanted}. Use the config of these weights."
        )
    if settings is None and (stored[source].dtype not in ARRAYS or stored[source].dtype[0] == "U"):
        raise ExportError(
            f"gguf: {source} is stored as {stored[source].dtype}; F32, F16, BF16, or MLX-quantized weights are "
            "needed. Convert the model with `mlx_lm.convert` first."
        )
    kind = Kind.F32 if len(shape) < 2 else choose(place.name, shape, stored[source], settings)
    return PlannedTensor(place.name, source, shape, kind, place.rotated_heads, settings)


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
