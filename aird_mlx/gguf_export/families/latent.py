"""Rows of the families with latent attention, where keys and values are expanded from a narrow vector.

llama.cpp keeps the expansion apart for each head, keys transposed. Source: ``conversion/deepseek.py`` of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from aird_mlx.gguf_export.changes import transpose
from aird_mlx.gguf_export.families import checks
from aird_mlx.gguf_export.families.experts import (
    EXPERT_LENGTH,
    LEADING_DENSE,
    SHARED,
    SHARED_COUNT,
    STACKED,
    WEIGHTS_SCALE,
    beyond_blocks,
    leading_dense,
)
from aird_mlx.gguf_export.families.family import EXPERTS, GATED, Family
from aird_mlx.gguf_export.families.keys import EXPERT_COUNTS, HEADS, NORMS, ROPE, SIZES, VOCABULARY
from aird_mlx.gguf_export.hyperparameters import Hyperparameters, Key, key
from aird_mlx.gguf_export.pieces import Rows, by_heads, rename, split, when


def key_rows(h: Hyperparameters, length: int) -> Mapping[str, Rows]:
    """Of the latent's expansion, each head's part for keys and its part for values."""
    nope, value = int(h.need("qk_nope_head_dim")), int(h.need("v_head_dim"))
    rows = np.arange(length).reshape(-1, nope + value)
    return {"k_b_proj": rows[:, :nope].reshape(-1), "v_b_proj": rows[:, nope:].reshape(-1)}


LATENT = (
    beyond_blocks(),
    *STACKED,
    when(
        lambda drafts, _: any(".kv_b_proj." in draft.name for draft in drafts),
        split(r"kv_b_proj", key_rows),
        by_heads(r"\.[kv]_b_proj\.weight$", lambda h: h.heads),
        transpose(r"\.k_b_proj\.weight$"),
    ),
    rename(r"\.embed_q\.", ".k_b_proj."),
    rename(r"\.unembed_out\.", ".v_b_proj."),
)
LATENT_ATTENTION = (
    "attn_norm.weight", "attn_kv_a_mqa.weight", "attn_kv_a_norm.weight", "attn_k_b.weight", "attn_v_b.weight",
    "attn_output.weight", "ffn_norm.weight",
)  # fmt: skip


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


DEEPSEEK2_KEYS: tuple[Key, ...] = (
    *SIZES, HEADS[0], key("attention.head_count_kv", int, lambda _: 1), *ROPE, *NORMS, *EXPERT_COUNTS,
    LEADING_DENSE, VOCABULARY,
    key("attention.q_lora_rank", int, "q_lora_rank"),
    key("attention.kv_lora_rank", int, "kv_lora_rank"),
    key("attention.key_length", int, lambda h: h.need("kv_lora_rank") + h.need("qk_rope_head_dim")),
    key("attention.value_length", int, "kv_lora_rank"),
    key("attention.key_length_mla", int, lambda h: h.need("qk_nope_head_dim") + h.need("qk_rope_head_dim")),
    key("attention.value_length_mla", int, "v_head_dim"),
    EXPERT_LENGTH, SHARED_COUNT, WEIGHTS_SCALE,
    key("expert_weights_norm", bool, lambda h: h.get("norm_topk_prob") or None),
    key("rope.dimension_count", int, "qk_rope_head_dim"),
    key("rope.scaling.yarn_log_multiplier", float, lambda h: _times(h.global_rope.get("mscale_all_dim"), 0.1)),
)  # fmt: skip


def deepseek2(*refusals: checks.Requirement) -> Family:
    """Multi-head latent attention: DeepSeek-V2, V3 and their kin."""
    return Family(
        "deepseek2", DEEPSEEK2_KEYS, LATENT,
        block={"dense": (*LATENT_ATTENTION, *GATED), "experts": (*LATENT_ATTENTION, *EXPERTS)}, kinds=leading_dense,
        may=(
            "attn_q.weight", "attn_q_a.weight", "attn_q_a_norm.weight", "attn_q_b.weight", "exp_probs_b.bias", *SHARED,
        ),
        shapes=dict.fromkeys(("attn_q.weight", "attn_output.weight"), ()), checks=refusals,
        scalings=("default", "yarn"),
    )  # fmt: skip


LATENT_ROWS: dict[str, Family] = {
    "deepseek_v2": deepseek2(checks.latent_attention, checks.groups_by_best_two, checks.scaling_is_complete),
    "deepseek_v3": deepseek2(checks.latent_attention, checks.scaling_is_complete),
}  # fmt: skip
