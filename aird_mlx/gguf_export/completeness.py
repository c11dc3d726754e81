"""Whether a folder has what llama.cpp looks for, nothing else, and in the shapes that its config tells."""

from __future__ import annotations

import re
from collections.abc import Mapping

from aird_mlx.errors import ExportError, ModelError
from aird_mlx.gguf_export.families import Family
from aird_mlx.gguf_export.hyperparameters import Hyperparameters
from aird_mlx.gguf_export.pieces import Draft

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
# Shapes that config.json tells: GGUF name inside a block -> axes as words of `_sizes`.
SHAPES = {
    EMBEDDING: ("vocab", "hidden"),
    OUTPUT: ("vocab", "hidden"),
    "attn_norm.weight": ("hidden",),
    "ffn_norm.weight": ("hidden",),
    "attn_q.weight": ("query", "hidden"),
    "attn_q.bias": ("query",),
    "attn_k.weight": ("key", "hidden"),
    "attn_k.bias": ("key",),
    "attn_v.weight": ("key", "hidden"),
    "attn_v.bias": ("key",),
    "attn_output.weight": ("hidden", "query"),
    "attn_output.bias": ("hidden",),
    "ffn_gate.weight": ("intermediate", "hidden"),
    "ffn_up.weight": ("intermediate", "hidden"),
    "ffn_down.weight": ("hidden", "intermediate"),
}


def check_looked_for(named: Mapping[str, Draft], family: Family, hyperparameters: Hyperparameters) -> None:
    """Whether llama.cpp looks for every tensor, and not only knows the name.

    Raises:
        ExportError: it does not.
    """
    kinds = family.block_kinds(hyperparameters)
    left_over = []
    for name, draft in named.items():
        if name.startswith("blk."):
            _, number, inner = name.split(".", 2)
            inside = int(number) < len(kinds) and family.has_place(kinds[int(number)], inner)
        else:
            inside = name in (EMBEDDING, OUTPUT, *family.outer) or name.removesuffix("bias") + "weight" in named
        if not inside:
            left_over.append(draft.source)
    refuse(left_over, hyperparameters)


def refuse(left_over: list[str], hyperparameters: Hyperparameters) -> None:
    """Every weight must be written.

    Raises:
        ExportError: some stored tensors are left over.
    """
    if left_over:
        raise ExportError(
            f"gguf: {len(left_over)} tensors have no place in {hyperparameters.architecture}, first "
            f"{min(left_over)}; every weight must be written. Use llama.cpp's convert_hf_to_gguf.py for this model."
        )


def check_complete(named: Mapping[str, Draft], family: Family, hyperparameters: Hyperparameters) -> None:
    """What one block has, all of its kind must have; and what the family cannot do without.

    Raises:
        ModelError: a tensor is missing.
    """
    kinds = family.block_kinds(hyperparameters)
    by_block: list[dict[str, str]] = [{} for _ in kinds]  # of each block, tensor to source
    known: dict[str, dict[str, str]] = {kind: {} for kind in kinds}
    for name, draft in named.items():
        if name.startswith("blk."):
            _, block, inner = name.split(".", 2)
            by_block[int(block)][inner] = known[kinds[int(block)]][inner] = draft.source
    for number, kind in enumerate(kinds):
        for inner, source in known[kind].items():
            if inner not in by_block[number]:
                missing = re.sub(r"\.\d+\.", f".{number}.", source, count=1)
                raise ModelError(
                    f"model: no tensor {missing}; {hyperparameters.model_type} needs it. Copy the folder again."
                )
        for inner in family.needs(kind):
            if inner not in by_block[number]:
                raise ModelError(
                    f"model: no tensor of block {number} becomes {inner}; {hyperparameters.model_type} needs it. "
                    "Copy the folder again."
                )
    needed = [EMBEDDING, *family.outer] + ([OUTPUT] if hyperparameters.tied is False else [])
    for name in needed:
        if name not in named:
            raise ModelError(
                f"model: no tensor becomes {name}; {hyperparameters.model_type} needs it. Copy the folder again."
            )


def check_shapes(named: Mapping[str, Draft], family: Family, hyperparameters: Hyperparameters) -> None:
    """Whether the tensors are as large as the config says, where it says so.

    Raises:
        ModelError: one is not.
    """
    sizes = _sizes(hyperparameters)
    shapes = {**SHAPES, **family.shapes}
    for name, draft in named.items():
        axes = shapes.get(name.split(".", 2)[-1] if name.startswith("blk.") else name)
        if not axes:
            continue
        wanted = tuple(sizes.get(axis) for axis in axes)
        if None not in wanted and draft.shape != wanted:
            raise ModelError(
                f"model: {draft.source} has shape {draft.shape}; config.json says {wanted}. Use the config of these "
                "weights."
            )


def _sizes(hyperparameters: Hyperparameters) -> dict[str, int]:
    """Axis words to lengths; ``vocab`` is left to the embedding itself where the config says that it is padded."""
    sizes = {"hidden": hyperparameters.hidden}
    if hyperparameters.get("num_attention_heads", "n_head", "n_heads") is not None:
        sizes["query"] = hyperparameters.heads * hyperparameters.head_dim
        sizes["key"] = hyperparameters.kv_heads * hyperparameters.head_dim
        sizes["head"] = hyperparameters.head_dim
    vocabulary = hyperparameters.given.get("vocab_size")
    if isinstance(vocabulary, int) and "pad_vocab_size_multiple" not in hyperparameters.given:
        sizes["vocab"] = vocabulary
    intermediate = hyperparameters.get("intermediate_size")
    if isinstance(intermediate, int):
        sizes["intermediate"] = intermediate
    return sizes
