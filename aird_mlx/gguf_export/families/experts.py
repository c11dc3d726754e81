"""Rows of the families whose feed-forward networks are many experts, of which a router picks a few for each token.

llama.cpp holds all experts of a block in one tensor ``[expert, out, in]``, as MLX does after loading; Hugging Face's
folders hold each apart, or gate and up projection of all of them in one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gguf
import numpy as np

from aird_mlx.gguf_export.families.dense import (
    LLAMA,
    NO_SCALING,
    ROPED,
    ROTATED,
    plain_rope,
    scaling_is_complete,
    usual_yarn,
)
from aird_mlx.gguf_export.families.dense import DENSE as DENSE_ROWS
from aird_mlx.gguf_export.families.family import ATTENTION, BLOCK, EXPERTS, GATED, HEAD_NORMS, Check, Family
from aird_mlx.gguf_export.families.keys import (
    COMMON,
    EXPERT_COUNTS,
    HEADS,
    NORMS,
    ROPE,
    ROTATED_HEAD,
    SIZES,
    VOCABULARY,
    WINDOW,
    rotary_dims,
)
from aird_mlx.gguf_export.families.rope import rope_frequency_factors
from aird_mlx.gguf_export.hyperparameters import Hyperparameters, Key, key, require
from aird_mlx.gguf_export.pieces import Rows, by_heads, drop, halves, interleaved, rename, split, split_values, stack, transpose, when

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


def whole_key_norms(h: Hyperparameters) -> None:
    """OLMoE."""
    require(h.kv_heads == h.heads, f"{h.kv_heads} key-value heads", f"llama.cpp computes olmoe with {h.heads}")


def top_weights_sum_to_one(expected: bool) -> Check:
    """Refuses the other way of turning scores into weights than the one llama.cpp computes for this architecture."""

    def check(h: Hyperparameters) -> None:
        found = bool(h.get("norm_topk_prob", default=expected))
        require(
            found == expected,
            f"norm_topk_prob {str(found).lower()}",
            f"llama.cpp computes {h.model_type} with {str(expected).lower()}",
        )

    return check


def all_blocks_have_experts(h: Hyperparameters) -> None:
    """llama.cpp expects experts in every block."""
    require(
        h.get("decoder_sparse_step", default=1) == 1 and not h.get("mlp_only_layers", default=[]),
        f"decoder_sparse_step {h.get('decoder_sparse_step')} and mlp_only_layers {h.get('mlp_only_layers')}",
        f"llama.cpp computes {h.model_type} with experts in every block",
    )


def leading_dense(h: Hyperparameters) -> list[str]:
    """Kinds of blocks: the first are dense."""
    first = int(h.get("first_k_dense_replace", default=0)) if h.get("n_routed_experts") else h.blocks
    return ["dense" if block < first else "experts" for block in range(h.blocks)]


def beyond_blocks(pattern: str = r"^model\.layers\.(\d+)\.") -> Any:
    """Leaves out the blocks that predict further tokens, which neither runtime uses to answer."""

    def apply(drafts: Any, h: Hyperparameters) -> Any:
        import re

        found = [(draft, re.match(pattern, draft.name)) for draft in drafts]
        return [draft for draft, match in found if match is None or int(match[1]) < h.blocks]

    return apply


def groups_by_best_two(h: Hyperparameters) -> None:
    """llama.cpp scores a group of experts by its two best; DeepSeek-V2 by its best."""
    grouped = (h.get("n_group", default=1) or 1) > 1 and h.get("topk_method") == "group_limited_greedy"
    require(
        not grouped, f"topk_method 'group_limited_greedy' with {h.get('n_group')} groups",
        "llama.cpp scores groups by their two best experts, DeepSeek-V2 by its best",
    )  # fmt: skip


def latent_attention(h: Hyperparameters) -> None:
    """What llama.cpp tells from the number of blocks, and yarn's two factors."""
    lite = h.blocks in (26, 27) or (h.blocks == 48 and h.get("vocab_size") == 128256)
    require(
        (h.get("q_lora_rank") is None) == lite,
        f"{h.blocks} blocks {'without' if h.get('q_lora_rank') is None else 'with'} q_lora_rank",
        "llama.cpp takes models of 26 or 27 blocks for those without it, and all others for those with it",
    )
    rope = h.global_rope
    if h.scaling != "default":
        require(
            rope.get("mscale", 1) == rope.get("mscale_all_dim", 0),
            f"rope scaling with mscale {rope.get('mscale', 1)} and mscale_all_dim {rope.get('mscale_all_dim', 0)}",
            "llama.cpp computes them as one",
        )


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


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def deepseek2(**changes: Any) -> Family:
    """Multi-head latent attention: DeepSeek-V2, V3 and their kin."""
    return Family(
        "deepseek2", DEEPSEEK2_KEYS, LATENT,
        block={"dense": (*LATENT_ATTENTION, *GATED), "experts": (*LATENT_ATTENTION, *EXPERTS)}, kinds=leading_dense,
        may=(
            "attn_q.weight", "attn_q_a.weight", "attn_q_a_norm.weight", "attn_q_b.weight", "exp_probs_b.bias", *SHARED,
        ),
        shapes=dict.fromkeys(("attn_q.weight", "attn_output.weight"), ()), **changes,
    )  # fmt: skip


def router_bias_is_dropped(h: Hyperparameters) -> list[str]:
    """ERNIE's correction of the router, which mlx-lm leaves out."""
    if not h.get("moe_use_aux_free"):
        return []
    return ["llama.cpp corrects the router's scores where the folder has e_score_correction_bias, MLX does not"]


def ernie_shared(h: Hyperparameters) -> int | None:
    """Width of the shared experts together."""
    count = h.get("moe_num_shared_experts", default=0)
    return count * (h.get("moe_intermediate_size") or h.need("intermediate_size")) if count else None


def ernie_blocks(h: Hyperparameters) -> None:
    """llama.cpp knows where the experts begin, not where they stop."""
    step, end = h.get("moe_layer_interval", default=1), h.get("moe_layer_end_index", default=h.blocks - 1)
    require(
        step == 1 and end in (h.blocks - 1, -1), f"moe_layer_interval {step} and moe_layer_end_index {end}",
        "llama.cpp computes experts in every block from moe_layer_start_index on",
    )  # fmt: skip
    require(h.get("moe_gate_act", default="softmax") == "softmax", f"moe_gate_act {h.get('moe_gate_act')!r}",
            "llama.cpp computes ernie4_5_moe with softmax")  # fmt: skip


def window_alternates(h: Hyperparameters) -> None:
    """gpt-oss: every second block attends to everything."""
    kinds = h.get("layer_types", default=[])
    usual = ["sliding_attention", "full_attention"] * ((h.blocks + 1) // 2)
    require(list(kinds) in ([], usual[: h.blocks]), f"layer_types {kinds}", "llama.cpp computes every second block whole")


ERNIE = (
    drop(r"\bmtp_(block|emb_norm|hidden_norm|linear_proj)\."),
    rename(r"^ernie\.", "model."),
    *STACKED,
)
ERNIE_KINDS: Callable[[Hyperparameters], list[str]] = lambda h: [  # noqa: E731
    "dense" if block < int(h.get("moe_layer_start_index", default=0)) else "experts" for block in range(h.blocks)
]
QWEN_SHARED = ("ffn_gate_inp_shexp.weight", *SHARED)
GRANITE = DENSE_ROWS["granite"]

WITH_EXPERTS: dict[str, Family] = {
    "mixtral": Family(
        "llama", LLAMA.keys, (*NUMBERED, ROTATED), block=(*WITH_NORM, *EXPERTS), scalings=LLAMA.scalings, checks=ROPED,
        extra=rope_frequency_factors, limits=LLAMA.limits,
    ),
    "qwen2_moe": Family(
        "qwen2moe",
        (*COMMON, EXPERT_LENGTH, key("expert_shared_feed_forward_length", int, "shared_expert_intermediate_size")),
        STACKED, block=(*WITH_NORM, *EXPERTS, *QWEN_SHARED),
        checks=(*ROPED, top_weights_sum_to_one(False), all_blocks_have_experts),
    ),
    "qwen3_moe": Family(
        "qwen3moe", (*COMMON, EXPERT_LENGTH), STACKED, block=(*WITH_NORM, *EXPERTS, *HEAD_NORMS),
        checks=(*ROPED, top_weights_sum_to_one(True), all_blocks_have_experts),
    ),
    "olmoe": Family(
        "olmoe", (*COMMON, key("attention.layer_norm_rms_epsilon", float, lambda _: 1e-5)), STACKED,
        block=(*WITH_NORM, *EXPERTS, *HEAD_NORMS), checks=(*ROPED, top_weights_sum_to_one(False), whole_key_norms),
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
    "deepseek_v2": deepseek2(checks=(latent_attention, groups_by_best_two, scaling_is_complete), scalings=("default", "yarn")),
    "deepseek_v3": deepseek2(checks=(latent_attention, scaling_is_complete), scalings=("default", "yarn")),
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
        checks=(plain_rope, usual_yarn, scaling_is_complete, window_alternates), scalings=("default", "yarn"),
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
        may=("exp_probs_b.bias", *SHARED), checks=(ernie_blocks,), scalings=("default",), limits=router_bias_is_dropped,
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
        checks=(plain_rope, top_weights_sum_to_one(False)), scalings=("default",),
    ),
}  # fmt: skip
