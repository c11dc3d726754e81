"""Rows of the hybrids: state space, short convolution or linear attention in most blocks, attention in the others.

Source: ``conversion/granite.py``, ``nemotron.py``, ``lfm2.py`` and ``qwen.py`` of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gguf

from aird_mlx.gguf_export.changes import squeeze
from aird_mlx.gguf_export.families import checks
from aird_mlx.gguf_export.families.dense import DENSE
from aird_mlx.gguf_export.families.experts import EXPERT_LENGTH, NUMBERED, SHARED, STACKED
from aird_mlx.gguf_export.families.family import ATTENTION, EXPERTS, GATED, HEAD_NORMS, PLAIN, Family
from aird_mlx.gguf_export.families.keys import (
    EXPERT_COUNTS,
    HEAD_DIM,
    HEADS,
    NORMS,
    ROPE,
    SIZES,
    VOCABULARY,
)
from aird_mlx.gguf_export.families.mamba import (
    COLUMNS,
    CONVOLUTION,
    NEGATIVE_EXPONENTIAL,
    SSM2,
    STEP_BIAS,
    UNLIMITED,
    heads_where,
    norm_by_groups,
)
from aird_mlx.gguf_export.families.rope import ROTATED, rotated
from aird_mlx.gguf_export.hyperparameters import Hyperparameters, Key, key
from aird_mlx.gguf_export.pieces import drop, halves, rename, split, when

GRANITE = DENSE["granite"]


def granite_kinds(h: Hyperparameters) -> Sequence[str]:
    """As the config lists them."""
    return list(h.get("layer_types", default=["attention"] * h.blocks))


def granite_architecture(config: Mapping[str, Any]) -> str:
    """Without recurrent blocks it is a plain Granite."""
    if "mamba" in (config.get("layer_types") or []):
        return "granitehybrid"
    return "granitemoe" if config.get("num_local_experts") else "granite"


def is_hybrid(value: Any) -> Any:
    """A key's value that only hybrids have."""
    return lambda h: (value(h) if callable(value) else h.get(value)) if h.architecture == "granitehybrid" else None


GRANITE_FEED_FORWARD = (
    when(
        lambda _, h: bool(h.get("num_local_experts")),
        split(r"(?<=shared_mlp\.)input_linear", halves("gate_proj", "up_proj")),
        rename(r"(?<=shared_mlp\.)output_linear", "down_proj"),
        rename(r"\.shared_mlp\.", ".mlp.shared_experts."),
    ),
    when(
        lambda _, h: not h.get("num_local_experts"),
        split(r"shared_mlp\.input_linear", halves("mlp.gate_proj", "mlp.up_proj")),
        rename(r"shared_mlp\.output_linear", "mlp.down_proj"),
    ),
    rename(r"\.input_linear\.", ".experts.gate_up_proj."),
    rename(r"\.output_linear\.", ".experts.down_proj."),
)
LETTERS = {
    "full_attention": "*",
    "attention": "*",
    "linear_attention": "M",
    "mamba": "M",
    "conv": "M",
    "mlp": "-",
    "moe": "E",
}
NEMOTRON_PATTERNS = ("hybrid_override_pattern", "layers_block_type", "layer_types")


def nemotron_kinds(h: Hyperparameters) -> Sequence[str]:
    """One letter a block: M recurrent, * attention, - feed-forward, E experts."""
    pattern = h.need(*NEMOTRON_PATTERNS)
    return [LETTERS.get(kind, kind) for kind in pattern]


def nemotron_architecture(config: Mapping[str, Any]) -> str:
    """With experts it is another."""
    pattern = next((config[name] for name in NEMOTRON_PATTERNS if config.get(name)), ())
    return "nemotron_h_moe" if {"E", "moe"} & set(pattern) else "nemotron_h"


def nemotron_lengths(h: Hyperparameters) -> list[int]:
    """Feed-forward width of each block."""
    has_experts = "E" in nemotron_kinds(h)
    length = int(h.need("moe_intermediate_size" if has_experts else "intermediate_size"))
    return [length if kind == ("E" if has_experts else "-") else 0 for kind in nemotron_kinds(h)]


def in_experts(name: str, kind: type, *sources: Any) -> Key:
    """A key of the architecture with experts."""
    plain = key(name, kind, *sources)
    return Key(name, kind, lambda h: plain.read(h) if h.architecture == "nemotron_h_moe" else None)


def lfm_kinds(h: Hyperparameters) -> Sequence[str]:
    """Attention or short convolution."""
    listed = h.get("layer_types")
    if listed is not None:
        return ["full_attention" if kind == "full_attention" else "conv" for kind in listed]
    attending = h.need("full_attn_idxs")
    return ["full_attention" if block in attending else "conv" for block in range(h.blocks)]


def lfm_length(h: Hyperparameters) -> int:
    """Feed-forward width, which MLX rounds up as the config says."""
    length = int(h.need("block_ff_dim", "intermediate_size"))
    if h.get("block_auto_adjust_ff_dim"):
        length = int(2 * length / 3)
        if h.get("block_ffn_dim_multiplier") is not None:
            length = int(h.get("block_ffn_dim_multiplier") * length)
        multiple = int(h.need("block_multiple_of"))
        length = multiple * ((length + multiple - 1) // multiple)
    return length


def lfm_moe_kinds(h: Hyperparameters) -> list[str]:
    """The first blocks have one feed-forward network, the others experts."""
    dense = int(h.get("num_dense_layers", default=0))
    return [f"{kind} {'dense' if block < dense else 'experts'}" for block, kind in enumerate(lfm_kinds(h))]


LFM_KEYS = (
    SIZES[0], SIZES[1], SIZES[2], HEADS[0],
    key("attention.head_count_kv", list, heads_where(lfm_kinds, "full_attention")),
    *ROPE, *NORMS, *EXPERT_COUNTS, *HEAD_DIM, VOCABULARY, key("shortconv.l_cache", int, "conv_L_cache"),
)  # fmt: skip
CONV_BLOCK = ("attn_norm.weight", "ffn_norm.weight", "shortconv.conv.weight", "shortconv.in_proj.weight",
              "shortconv.out_proj.weight")  # fmt: skip
LFM_BLOCKS = {
    "conv": CONV_BLOCK,
    "full_attention": (*ATTENTION, "ffn_norm.weight", *HEAD_NORMS),
}


HYBRID: dict[str, Family] = {
    "granitemoehybrid": Family(
        granite_architecture,
        (
            *GRANITE.keys, *EXPERT_COUNTS, key("expert_shared_feed_forward_length", int, "shared_intermediate_size"),
            key("ssm.conv_kernel", int, is_hybrid("mamba_d_conv")),
            key("ssm.state_size", int, is_hybrid("mamba_d_state")),
            key("ssm.group_count", int, is_hybrid("mamba_n_groups")),
            key("ssm.inner_size", int, is_hybrid(lambda h: h.need("mamba_n_heads") * h.need("mamba_d_head"))),
            key("ssm.time_step_rank", int, is_hybrid("mamba_n_heads")),
            key("attention.head_count_kv", list, heads_where(granite_kinds, "attention")),
            key("rope.scaling.finetuned", bool, lambda h: h.architecture != "granitehybrid"),
            key("context_length", int, is_hybrid(lambda _: UNLIMITED)),
        ),
        (
            *GRANITE_FEED_FORWARD, *NUMBERED, ROTATED, CONVOLUTION, NEGATIVE_EXPONENTIAL, COLUMNS, STEP_BIAS,
            norm_by_groups("mamba_n_groups"),
        ),
        block={
            "attention": (*ATTENTION, "ffn_norm.weight"),
            "mamba": ("attn_norm.weight", *SSM2, "ssm_norm.weight", "ffn_norm.weight"),
        },
        kinds=granite_kinds, may=(*GATED, *EXPERTS, *SHARED), checks=(checks.granite_positions,), scalings=("default",),
        limits=checks.limited_steps, shapes=dict.fromkeys(GATED, ()),
    ),
    "nemotron_h": Family(
        nemotron_architecture,
        (
            SIZES[0], key("context_length", int, lambda _: UNLIMITED), SIZES[2], HEADS[0], *ROPE,
            key("attention.layer_norm_rms_epsilon", float, "layer_norm_epsilon", "rms_norm_eps", "norm_eps"), NORMS[1],
            VOCABULARY, key("rope.dimension_count", int, lambda h: h.hidden // h.heads),
            key("ssm.conv_kernel", int, "conv_kernel"), key("ssm.state_size", int, "ssm_state_size"),
            key("ssm.group_count", int, "n_groups"),
            key("ssm.inner_size", int, lambda h: h.need("mamba_num_heads") * h.need("mamba_head_dim")),
            key("ssm.time_step_rank", int, "mamba_num_heads"),
            key("attention.head_count_kv", list, heads_where(nemotron_kinds, "*")),
            key("rope.scaling.finetuned", bool, lambda _: False),
            key("attention.key_length", int, lambda h: h.head_dim),
            key("attention.value_length", int, lambda h: h.head_dim),
            key("feed_forward_length", list, nemotron_lengths),
            in_experts("expert_feed_forward_length", int, "moe_intermediate_size"),
            in_experts("expert_shared_feed_forward_length", int, "moe_shared_expert_intermediate_size"),
            in_experts("expert_count", int, "n_routed_experts"),
            in_experts("expert_used_count", int, "num_experts_per_tok"),
            in_experts("expert_shared_count", int, "n_shared_experts"),
            in_experts("expert_weights_norm", bool, "norm_topk_prob"),
            in_experts("expert_weights_scale", float, "routed_scaling_factor"),
            in_experts("expert_group_count", int, "n_group"),
            in_experts("expert_group_used_count", int, "topk_group"),
            in_experts("moe_latent_size", int, "moe_latent_size"),
        ),
        (
            drop(r"^mtp\."), rename(r"switch_mlp\.fc1", "switch_mlp.up_proj"),
            rename(r"switch_mlp\.fc2", "switch_mlp.down_proj"), *STACKED,
            rename(r"^backbone\.(layers\.\d+)\.mixer\.experts\.", r"model.\1.mlp.experts."),
            rotated(r"mixer\.[qk]_proj\."),  # nothing is rotated, but the converter reorders both alike
            CONVOLUTION, NEGATIVE_EXPONENTIAL, COLUMNS, STEP_BIAS, norm_by_groups("n_groups"),
        ),
        block={
            "M": ("attn_norm.weight", *SSM2, "ssm_norm.weight"),
            "*": ATTENTION,
            "-": ("attn_norm.weight", *PLAIN),
            "E": ("attn_norm.weight", "ffn_gate_inp.weight", "ffn_up_exps.weight", "ffn_down_exps.weight"),
        },
        kinds=nemotron_kinds, activations=("relu2",), scalings=("default",), limits=checks.limited_steps,
        may=("exp_probs_b.bias", "ffn_up_shexp.weight", "ffn_down_shexp.weight", "ffn_latent_down.weight",
             "ffn_latent_up.weight"),
    ),
    "lfm2": Family(
        "lfm2", (*LFM_KEYS, key("feed_forward_length", int, lfm_length)),
        (squeeze(r"conv\.conv\.weight$"),),
        block={kind: (*block, *GATED) for kind, block in LFM_BLOCKS.items()}, kinds=lfm_kinds,
        outer=("token_embd_norm.weight",), checks=(checks.no_conv_bias,), scalings=("default",),
        shapes=dict.fromkeys(GATED, ()),
    ),
    "lfm2_moe": Family(
        "lfm2moe",
        (
            *LFM_KEYS, key("feed_forward_length", int, "intermediate_size"), EXPERT_LENGTH,
            key("leading_dense_block_count", int, "num_dense_layers"),
            key("expert_gating_func", int, lambda _: int(gguf.ExpertGatingFuncType.SIGMOID)),
        ),
        (
            squeeze(r"conv\.conv\.weight$"), *STACKED,
            rename(r"expert_bias$", "expert_bias.bias"),
            rename(r"\.feed_forward\.experts\.(w1|gate_proj)\.", ".mlp.experts.gate_proj."),
            rename(r"\.feed_forward\.experts\.(w2|down_proj)\.", ".mlp.experts.down_proj."),
            rename(r"\.feed_forward\.experts\.(w3|up_proj)\.", ".mlp.experts.up_proj."),
        ),
        block={
            f"{kind} {feed}": (*block, *tensors)
            for kind, block in LFM_BLOCKS.items()
            for feed, tensors in (("dense", GATED), ("experts", EXPERTS))
        },
        kinds=lfm_moe_kinds, may=("exp_probs_b.bias",),
        outer=("token_embd_norm.weight",), checks=(checks.no_conv_bias, checks.lfm_router), scalings=("default",),
    ),
}  # fmt: skip
