"""Rows of the families whose feed-forward networks are many experts, of which a router picks a few for each token.

llama.cpp holds all experts of a block in one tensor ``[expert, out, in]``, as MLX does after loading; Hugging Face's
folders hold each apart, or gate and up projection of all of them in one.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import gguf

from aird_mlx.gguf_export.changes import split_values, transpose
from aird_mlx.gguf_export.families import checks
from aird_mlx.gguf_export.families.checks import ROPED
from aird_mlx.gguf_export.families.dense import DENSE, LLAMA
from aird_mlx.gguf_export.families.family import ATTENTION, BLOCK, EXPERTS, GATED, HEAD_NORMS, Family
from aird_mlx.gguf_export.families.keys import (
    COMMON,
    EXPERT_COUNTS,
    NO_SCALING,
    ROTATED_HEAD,
    VOCABULARY,
    WINDOW,
    rotary_dims,
)
from aird_mlx.gguf_export.families.rope import ROTATED, rope_frequency_factors
from aird_mlx.gguf_export.hyperparameters import Hyperparameters, key
from aird_mlx.gguf_export.pieces import Drafts, Operation, drop, halves, interleaved, rename, split, stack

WITH_NORM = (*ATTENTION, "ffn_norm.weight")
SHARED = ("ffn_gate_shexp.weight", "ffn_up_shexp.weight", "ffn_down_shexp.weight")
EXPERT_LENGTH = key("expert_feed_forward_length", int, "moe_intermediate_size")
SHARED_COUNT = key("expert_shared_count", int, lambda h: h.get("n_shared_experts", default=0))
WEIGHTS_SCALE = key("expert_weights_scale", float, "routed_scaling_factor")
LEADING_DENSE = key("leading_dense_block_count", int, lambda h: h.get("first_k_dense_replace", default=0))
# From every layout to the names of stacked experts.
STACKED = (
    rename(r"\.switch_mlp\.", ".experts."),
    stack(),
    rename(r"(experts\.(gate_up_proj|down_proj))$", r"\1.weight"),
    split(r"(?<=experts\.)gate_up_proj", halves("gate_proj", "up_proj")),
    rename(r"e_score_correction_bias$", "e_score_correction.bias"),
)
# The experts of Mixtral's descendants go by numbers: gate, down, up.
NUMBERED = (
    *STACKED,
    rename(r"(block_sparse_moe\.experts\.)gate_proj", r"\1w1"),
    rename(r"(block_sparse_moe\.experts\.)down_proj", r"\1w2"),
    rename(r"(block_sparse_moe\.experts\.)up_proj", r"\1w3"),
)


def leading_dense(h: Hyperparameters) -> list[str]:
    """Kinds of blocks: the first are dense."""
    first = int(h.get("first_k_dense_replace", default=0)) if h.get("n_routed_experts") else h.blocks
    return ["dense" if block < first else "experts" for block in range(h.blocks)]


def beyond_blocks() -> Operation:
    """Leaves out the blocks that predict further tokens, which neither runtime uses to answer."""

    def apply(drafts: Drafts, h: Hyperparameters) -> Drafts:
        found = [(draft, re.match(r"model\.layers\.(\d+)\.", draft.name)) for draft in drafts]
        return [draft for draft, match in found if match is None or int(match[1]) < h.blocks]

    return apply


def ernie_shared(h: Hyperparameters) -> int | None:
    """Width of the shared experts together."""
    count = h.get("moe_num_shared_experts", default=0)
    return count * (h.get("moe_intermediate_size") or h.need("intermediate_size")) if count else None


ERNIE = (
    drop(r"\bmtp_(block|emb_norm|hidden_norm|linear_proj)\."),
    rename(r"^ernie\.", "model."),
    *STACKED,
)
ERNIE_KINDS: Callable[[Hyperparameters], list[str]] = lambda h: [  # noqa: E731
    "dense" if block < int(h.get("moe_layer_start_index", default=0)) else "experts" for block in range(h.blocks)
]
QWEN_SHARED = ("ffn_gate_inp_shexp.weight", *SHARED)
GRANITE = DENSE["granite"]
WITH_EXPERTS: dict[str, Family] = {
    "mixtral": Family(
        "llama", LLAMA.keys, (*NUMBERED, ROTATED), block=(*WITH_NORM, *EXPERTS), scalings=("default",), checks=ROPED,
        limits=LLAMA.limits,
    ),
    "qwen2_moe": Family(
        "qwen2moe",
        (*COMMON, EXPERT_LENGTH, key("expert_shared_feed_forward_length", int, "shared_expert_intermediate_size")),
        STACKED, block=(*WITH_NORM, *EXPERTS, *QWEN_SHARED),
        checks=(*ROPED, checks.all_blocks_have_experts), scalings=("default", "linear"),
    ),
    "qwen3_moe": Family(
        "qwen3moe", (*COMMON, EXPERT_LENGTH), STACKED, block=(*WITH_NORM, *EXPERTS, *HEAD_NORMS),
        checks=(*ROPED, checks.top_weights_sum_to_one(True), checks.all_blocks_have_experts), scalings=("default",),
    ),
    "olmoe": Family(
        "olmoe", (*COMMON, key("attention.layer_norm_rms_epsilon", float, lambda _: 1e-5)), STACKED,
        block=(*WITH_NORM, *EXPERTS, *HEAD_NORMS),
        checks=(*ROPED, checks.top_weights_sum_to_one(False), checks.no_shared_keys),
        outer=("output_norm.weight", "output.weight"),
    ),
    "granitemoe": Family(
        "granitemoe",
        (*GRANITE.keys, *EXPERT_COUNTS, key("expert_shared_feed_forward_length", int, "shared_intermediate_size")),
        (
            rename(r"\.input_linear\.", ".experts.gate_up_proj."),
            rename(r"\.output_linear\.", ".experts.down_proj."),
            *NUMBERED, ROTATED,
        ),
        block=(*WITH_NORM, *EXPERTS), checks=ROPED, scalings=GRANITE.scalings, extra=rope_frequency_factors,
    ),
    "gpt_oss": Family(
        "gpt-oss", (*COMMON, WINDOW, key("expert_feed_forward_length", int, "intermediate_size")),
        (
            rename(r"sinks$", "sinks.weight"),
            # Of Hugging Face's plain weights the experts are [in, out], gate and up in turns.
            split_values(
                r"gate_up_proj$",
                {"gate_proj.weight": lambda values: values.T[::2], "up_proj.weight": lambda values: values.T[1::2]},
                lambda shape: (shape[0], shape[2] // 2, shape[1]),
            ),
            split_values(
                r"gate_up_proj_bias$",
                {"gate_proj.bias": lambda values: values[:, ::2], "up_proj.bias": lambda values: values[:, 1::2]},
                lambda shape: (shape[0], shape[1] // 2),
            ),
            transpose(r"experts\.down_proj$"),
            rename(r"(experts\.down_proj)$", r"\1.weight"),
            rename(r"(experts\.down_proj)_bias$", r"\1.bias"),
            split(r"(?<=experts\.)gate_up_proj(?=\.weight)", interleaved("gate_proj", "up_proj")),  # MXFP4 blocks
        ),
        block=(*ATTENTION, "post_attention_norm.weight", "attn_sinks.weight", *EXPERTS),
        checks=(checks.plain_rope, checks.usual_yarn, checks.scaling_is_complete, checks.window_alternates),
        scalings=("default", "yarn"),
    ),
    "ernie4_5_moe": Family(
        "ernie4_5-moe",
        (
            *COMMON,
            key("expert_count", int, "moe_num_experts"),
            key("expert_used_count", int, "moe_k"),
            key("interleave_moe_layer_step", int, lambda h: h.get("moe_layer_interval", default=1)),
            key("leading_dense_block_count", int, lambda h: h.get("moe_layer_start_index", default=0)),
            EXPERT_LENGTH,
            key("expert_shared_count", int, "moe_num_shared_experts"),
            key("expert_shared_feed_forward_length", int, ernie_shared),
        ),
        ERNIE, block={"dense": BLOCK, "experts": (*WITH_NORM, *EXPERTS)}, kinds=ERNIE_KINDS,
        may=("exp_probs_b.bias", *SHARED), checks=(checks.ernie_blocks,), scalings=("default",),
        limits=checks.router_bias_is_dropped,
    ),
    "ernie4_5": Family("ernie4_5", COMMON, ERNIE, scalings=("default",)),
    "glm4_moe": Family(
        "glm4moe",
        (
            *COMMON, key("rope.dimension_count", int, rotary_dims(0.5)), EXPERT_LENGTH, SHARED_COUNT, LEADING_DENSE,
            key("expert_gating_func", int, lambda _: int(gguf.ExpertGatingFuncType.SIGMOID)),
            WEIGHTS_SCALE, key("expert_weights_norm", bool, "norm_topk_prob"),
        ),
        (beyond_blocks(), *STACKED),
        block={
            "dense": (*ATTENTION, "post_attention_norm.weight", *GATED),
            "experts": (*ATTENTION, "post_attention_norm.weight", *EXPERTS),
        },
        kinds=leading_dense, may=("exp_probs_b.bias", *SHARED, *HEAD_NORMS), scalings=("default",),
    ),
    "deepseek": Family(
        "deepseek",
        (
            *COMMON, ROTATED_HEAD, NO_SCALING, LEADING_DENSE, VOCABULARY, EXPERT_LENGTH,
            key("expert_weights_scale", float, lambda _: 1.0), SHARED_COUNT,
        ),
        (*STACKED, ROTATED),
        block={"dense": BLOCK, "experts": (*WITH_NORM, *EXPERTS, *SHARED)}, kinds=leading_dense,
        checks=(checks.plain_rope,), scalings=("default",),
    ),
    "dots1": Family(
        "dots1",
        (
            *COMMON, EXPERT_LENGTH, LEADING_DENSE, SHARED_COUNT, WEIGHTS_SCALE,
            key("expert_weights_norm", bool, "norm_topk_prob"),
        ),
        STACKED,
        block={"dense": (*BLOCK, *HEAD_NORMS), "experts": (*WITH_NORM, *HEAD_NORMS, *EXPERTS, *SHARED)},
        kinds=leading_dense, may=("exp_probs_b.bias",), checks=(*ROPED, checks.no_shared_keys),
    ),
}  # fmt: skip
