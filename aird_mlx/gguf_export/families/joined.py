"""Rows of the dense families whose projections are stored joined: queries, keys and values, or gate and up.

llama.cpp takes some of them joined and others apart. Source: ``conversion/phi.py``, ``olmo.py``, ``gpt2.py``,
``gptneox.py`` and ``internlm.py`` of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from aird_mlx.gguf_export.changes import transpose
from aird_mlx.gguf_export.families import checks
from aird_mlx.gguf_export.families.checks import ROPED
from aird_mlx.gguf_export.families.dense import GELU, rounded_rotary_dims
from aird_mlx.gguf_export.families.family import ATTENTION, GATED, PLAIN, Family
from aird_mlx.gguf_export.families.keys import BASE, COMMON, HEADS, NORMS, SIZES, UNUSUAL_BASE, rotary_dims
from aird_mlx.gguf_export.families.rope import ROTATED, longrope_factors, longrope_key, rotated
from aird_mlx.gguf_export.hyperparameters import Hyperparameters, key
from aird_mlx.gguf_export.pieces import drop, halves, rename, reorder, split, when


def gpt_neox_rows(h: Hyperparameters, length: int) -> np.ndarray:
    """From (head, q k v) to (q k v, head)."""
    return np.arange(length).reshape(h.heads, 3, -1).swapaxes(0, 1).reshape(-1)


def is_old_gpt2(drafts: Any, _: Hyperparameters) -> bool:
    """Hugging Face's layout, whose linears are transposed; MLX's has another prefix."""
    return any(draft.name.startswith("h.") for draft in drafts)


def olmo_parts(h: Hyperparameters, length: int) -> Mapping[str, range]:
    """The fused projection of the original OLMo."""
    third = length // 3
    return {f"self_attn.{name}_proj": range(at * third, (at + 1) * third) for at, name in enumerate("qkv")}


def internlm_parts(h: Hyperparameters, length: int) -> Mapping[str, np.ndarray]:
    """Of the joint projection, queries, keys and values; stored group by group."""
    shared = h.heads // h.kv_heads
    rows = np.arange(length).reshape(h.kv_heads, shared + 2, h.head_dim)
    parts = {"wq": rows[:, :shared], "wk": rows[:, shared], "wv": rows[:, shared + 1]}
    return {name: part.reshape(-1) for name, part in parts.items()}


JOINED: dict[str, Family] = {
    "phi3": Family(
        "phi3",
        (
            *SIZES, *HEADS, NORMS[0],
            key(
                "rope.scaling.original_context_length", int,
                lambda h: h.global_rope.get("original_max_position_embeddings"),
            ),
            key("rope.dimension_count", int, rounded_rotary_dims),
            BASE,
            key("attention.sliding_window", int, lambda h: h.get("sliding_window", default=0)),
            longrope_key,
        ),
        shapes={"ffn_up.weight": ()},
        block=("attn_norm.weight", "attn_qkv.weight", "attn_output.weight", "ffn_norm.weight", *PLAIN),
        scalings=("default", "longrope", "su"), checks=(checks.plain_rope,), limits=checks.always_long,
        extra=longrope_factors,
    ),
    "olmo": Family(
        "olmo",
        (
            *COMMON, key("attention.layer_norm_epsilon", float, lambda _: 1e-5),
            key("attention.clamp_kqv", float, "clip_qkv"),
        ),
        (
            rename(r"^(model\.)?transformer\.blocks\.", "model.layers."),
            rename(r"^(model\.)?transformer\.wte\.", "model.embed_tokens."),
            rename(r"^(model\.)?transformer\.ff_out\.", "lm_head."),
            rename(r"\.attn_out\.", ".self_attn.o_proj."),
            rename(r"\.ff_out\.", ".mlp.down_proj."),
            split(r"att_proj", olmo_parts),
            split(r"ff_proj", halves("mlp.up_proj", "mlp.gate_proj")),
            ROTATED,
        ),
        block=(*ATTENTION[1:], *GATED), outer=(), checks=ROPED, shapes=dict.fromkeys(GATED, ()),
    ),
    "gpt2": Family(
        "gpt2",
        (
            SIZES[0], key("context_length", int, "n_ctx", "n_positions"), SIZES[2],
            key("feed_forward_length", int, lambda h: 4 * h.hidden), HEADS[0], NORMS[1],
        ),
        (
            drop(r"\.attn\.(masked_)?bias$"),
            when(is_old_gpt2, transpose(r"\.(c_attn|c_proj|c_fc)\.weight$")),
            rename(r"^model\.(?=(h|wte|wpe|ln_f)\.)", ""),
        ),
        block=("attn_norm.weight", "attn_qkv.weight", "attn_output.weight", "ffn_norm.weight", *PLAIN),
        outer=("output_norm.weight", "position_embd.weight"), shapes=dict.fromkeys(PLAIN, ()),
        activations=("gelu_new", *GELU),
    ),
    "gpt_neox": Family(
        "gptneox",
        (
            *SIZES, key("rope.dimension_count", int, rotary_dims(0.25)), HEADS[0], UNUSUAL_BASE,
            key("use_parallel_residual", bool, lambda h: h.get("use_parallel_residual", default=True)), NORMS[1],
        ),
        (
            drop(r"\.attention\.(masked_)?bias$"),
            rename(r"^model\.h\.", "gpt_neox.layers."),
            rename(r"^model\.(?=embed_in|final_layer_norm)", "gpt_neox."),
            rename(r"^model\.embed_out", "embed_out"),
            reorder(r"query_key_value", gpt_neox_rows),
        ),
        block=("attn_norm.weight", "attn_qkv.weight", "attn_output.weight", "ffn_norm.weight", *PLAIN),
        activations=GELU, scalings=("default",),
    ),
    "internlm2": Family(
        "internlm2", COMMON, (split(r"wqkv", internlm_parts), rotated(r"attention\.w[qk]\.")), checks=ROPED,
        scalings=("default", "linear"),
    ),
}  # fmt: skip
