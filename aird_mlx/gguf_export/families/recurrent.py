"""Rows of the families that carry a state along the text: state space models, short convolutions, linear attention.

What happens to their tensors: ``A = -exp(A_log)``, convolutions without their axis of length 1 (which MLX and Hugging
Face put in different places), and one number for each head becomes a column. Source: ``conversion/mamba.py`` of
llama.cpp and its heirs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gguf
import numpy as np

from aird_mlx.gguf_export.families.dense import DENSE, ROTATED, scaling_is_complete
from aird_mlx.gguf_export.families.experts import EXPERT_LENGTH, NUMBERED, QWEN_SHARED, SHARED, STACKED, WEIGHTS_SCALE
from aird_mlx.gguf_export.families.family import ATTENTION, EXPERTS, GATED, HEAD_NORMS, PLAIN, Check, Family
from aird_mlx.gguf_export.families.keys import (
    COMMON,
    EXPERT_COUNTS,
    HEAD_DIM,
    HEADS,
    NORMS,
    ROPE,
    SIZES,
    VOCABULARY,
    rotary_dims,
)
from aird_mlx.gguf_export.families.rope import rope_frequency_factors, rotated
from aird_mlx.gguf_export.hyperparameters import Hyperparameters, Key, key, require
from aird_mlx.gguf_export.pieces import (
    Draft,
    Drafts,
    Operation,
    Rows,
    add,
    change,
    drop,
    flatten,
    halves,
    rename,
    split,
    squeeze,
    stack,
    when,
)

UNLIMITED = 2**20  # what the converter writes for models without positions
NEGATIVE_EXPONENTIAL = change(r"A_log$", lambda _: lambda values: -np.exp(values))
COLUMNS = change(r"\.(A_log|D)$", lambda _: lambda values: values, lambda _, shape: (*shape, 1))
CONVOLUTION = squeeze(r"conv1d\.weight$")
STEP_BIAS = rename(r"\.dt_bias$", ".dt_proj.bias")
SSM = ("ssm_conv1d.weight", "ssm_a", "ssm_d", "ssm_out.weight", "ssm_in.weight")
SSM1 = ("attn_norm.weight", *SSM, "ssm_x.weight", "ssm_dt.weight", "ssm_dt.bias")
SSM2 = (*SSM, "ssm_dt.bias")
GRANITE = DENSE["granite"]


def norm_by_groups(groups: str) -> Operation:
    """The gated norm of Mamba 2 as ``[group, width / group]``."""
    return change(
        r"(mixer|mamba)\.norm\.weight$",
        lambda _: lambda values: values,
        lambda h, shape: (int(h.get(groups, default=1)), shape[0] // int(h.get(groups, default=1))),
    )


def one_group(name: str) -> Check:
    """Refuses what llama.cpp normalizes group by group and MLX as a whole."""

    def check(h: Hyperparameters) -> None:
        groups = int(h.get(name, default=1))
        require(groups == 1, f"{name} {groups}", "llama.cpp normalizes each group by itself, MLX all together")

    return check


def limited_steps(h: Hyperparameters) -> list[str]:
    """MLX clips the time step."""
    low, high = h.get("time_step_limit", default=(0.0, float("inf")))
    if low == 0 and high == float("inf"):
        return []
    return [f"MLX keeps time steps between {low:g} and {high:g}, llama.cpp does not: equal within"]


def twice_as_wide(h: Hyperparameters) -> None:
    """llama.cpp's mamba."""
    inner = int(h.need("intermediate_size", "d_inner"))
    require(inner == 2 * h.hidden, f"intermediate_size {inner}", f"llama.cpp computes mamba with {2 * h.hidden}")


def usual_epsilon(h: Hyperparameters) -> None:
    """MLX's mamba has a fixed one."""
    epsilon = float(h.get("layer_norm_epsilon", "rms_norm_eps", default=1e-5))
    require(epsilon == 1e-5, f"layer_norm_epsilon {epsilon:g}", "MLX computes it with 1e-05 whatever the config says")


def time_rank(name: str) -> Any:
    """Width of the time step's projection; ``auto`` is a sixteenth of the stream."""

    def read(h: Hyperparameters) -> int:
        rank = h.get(name, default="auto")
        return -(h.hidden // -16) if rank == "auto" else int(rank)

    return read


# --- Falcon-H1: multipliers that Hugging Face keeps beside the weights and MLX and llama.cpp inside them ---------------


def is_unfolded(drafts: Drafts, _: Any) -> bool:
    """Whether a folder is in Hugging Face's layout: its convolutions end in the kernel."""
    convolution = next((draft for draft in drafts if draft.name.endswith("conv1d.weight")), None)
    return convolution is not None and len(convolution.shape) == 3 and convolution.shape[-1] != 1


def times(pattern: str, factor: Any) -> Operation:
    """Multiply by a number of the config, or by one for each row."""

    def multiply(h: Hyperparameters) -> Any:
        numbers = np.asarray(factor(h), dtype=np.float32)
        return lambda values: values * (numbers[:, None] if numbers.ndim else numbers)

    return change(pattern, multiply)


def falcon_rows(h: Hyperparameters) -> np.ndarray:
    """One multiplier for each row of the mixer's input: gate, x, B, C, dt."""
    inner, state = int(h.need("mamba_d_ssm")), int(h.need("mamba_n_groups")) * int(h.need("mamba_d_state"))
    sizes = (inner, inner, state, state, int(h.need("mamba_n_heads")))
    return np.repeat(np.asarray(h.need("ssm_multipliers"), np.float32), sizes) * np.float32(h.need("ssm_in_multiplier"))


def falcon_output(drafts: Drafts, h: Hyperparameters) -> Drafts:
    """A tied output matrix of its own, because MLX scales the logits by two multipliers that llama.cpp does not know."""
    scale = np.float32(h.need("lm_head_multiplier") / h.need("embedding_multiplier"))
    embedding = next(draft for draft in drafts if draft.name == "model.embed_tokens.weight")
    before = embedding.change
    return [
        *(draft for draft in drafts if draft.name != "lm_head.weight"),
        Draft(
            "output.weight", embedding.shape, embedding.pieces,
            lambda values: (values if before is None else before(values)) * scale,
        ),
    ]  # fmt: skip


FALCON = (
    when(
        is_unfolded,
        times(r"down_proj\.weight$", lambda h: h.need("mlp_multipliers")[1]),
        times(r"gate_proj\.weight$", lambda h: h.need("mlp_multipliers")[0]),
        times(r"k_proj\.weight$", lambda h: h.need("key_multiplier") * h.need("attention_in_multiplier")),
        times(r"[qv]_proj\.weight$", lambda h: h.need("attention_in_multiplier")),
        times(r"o_proj\.weight$", lambda h: h.need("attention_out_multiplier")),
        times(r"mamba\.out_proj\.weight$", lambda h: h.need("ssm_out_multiplier")),
        times(r"mamba\.in_proj\.weight$", falcon_rows),
        times(r"lm_head\.weight$", lambda h: h.need("lm_head_multiplier")),
        times(r"embed_tokens\.weight$", lambda h: h.need("embedding_multiplier")),
    ),
    CONVOLUTION, NEGATIVE_EXPONENTIAL, COLUMNS, STEP_BIAS, norm_by_groups("mamba_n_groups"),
    when(lambda _, h: bool(h.tied), falcon_output),
)  # fmt: skip


def norm_after_gate(h: Hyperparameters) -> None:
    """llama.cpp normalizes what the gate leaves."""
    if h.get("mamba_rms_norm"):
        require(
            not h.get("mamba_norm_before_gate"), "mamba_norm_before_gate true", "llama.cpp normalizes after the gate"
        )
        one_group("mamba_n_groups")(h)


# --- hybrids ----------------------------------------------------------------------------------------------------------


def jamba_kinds(h: Hyperparameters) -> list[str]:
    """Which blocks attend; whether they have experts is told by their tensors."""
    period, offset = int(h.need("attn_layer_period")), int(h.need("attn_layer_offset"))
    return ["attention" if block % period == offset else "mamba" for block in range(h.blocks)]


def heads_where(kinds: Any, kind: str) -> Any:
    """Key-value heads of each block: 0 where it does not attend."""
    return lambda h: [h.kv_heads if found == kind else 0 for found in kinds(h)]


def no_experts(h: Hyperparameters) -> None:
    """Jamba's router."""
    count = int(h.get("num_experts", default=1))
    require(count == 1, f"num_experts {count}", "MLX makes the weights of the chosen experts sum to 1, llama.cpp not")


def granite_kinds(h: Hyperparameters) -> Sequence[str]:
    """As the config lists them."""
    return list(h.get("layer_types", default=["attention"] * h.blocks))


def granite_architecture(config: Mapping[str, Any]) -> str:
    """Without recurrent blocks it is a plain Granite."""
    if "mamba" in (config.get("layer_types") or []):
        return "granitehybrid"
    return "granitemoe" if config.get("num_local_experts") else "granite"


def granite_positions(h: Hyperparameters) -> None:
    """llama.cpp's hybrid has none, its plain Granite has."""
    wanted = "nope" if h.architecture == "granitehybrid" else "rope"
    found = h.get("position_embedding_type", default="rope")
    require(found == wanted, f"position_embedding_type {found!r}", f"llama.cpp computes {h.architecture} with {wanted!r}")
    if h.architecture == "granitehybrid":
        one_group("mamba_n_groups")(h)


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
LETTERS = {"full_attention": "*", "attention": "*", "linear_attention": "M", "mamba": "M", "conv": "M", "mlp": "-", "moe": "E"}


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


def no_conv_bias(h: Hyperparameters) -> None:
    """llama.cpp's short convolution has none."""
    require(not h.get("conv_bias"), "conv_bias true", f"llama.cpp computes {h.model_type} without")


def lfm_router(h: Hyperparameters) -> None:
    """llama.cpp's router."""
    scale, norm = h.get("routed_scaling_factor", default=1.0), h.get("norm_topk_prob", default=True)
    require(scale == 1 and norm, f"routed_scaling_factor {scale} and norm_topk_prob {norm}",
            "llama.cpp computes lfm2_moe with 1 and true")  # fmt: skip


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


def delta_rows(h: Hyperparameters, length: int) -> Mapping[str, Rows]:
    """Of linear attention's joint projection, q k v of all heads, and the gate; stored head by head."""
    keys, values = int(h.need("linear_num_key_heads")), int(h.need("linear_num_value_heads"))
    key_dim, value_dim = int(h.need("linear_key_head_dim")), int(h.need("linear_value_head_dim"))
    wide = values // keys * value_dim
    rows = np.arange(length).reshape(keys, 2 * key_dim + 2 * wide)
    ends = np.cumsum([key_dim, key_dim, wide])
    query, key_rows, value, gate = np.split(rows, ends, axis=1)
    return {
        r"blk.\1.attn_qkv": np.concatenate([part.reshape(-1) for part in (query, key_rows, value)]),
        r"blk.\1.attn_gate": gate.reshape(-1),
    }


def delta_kinds(h: Hyperparameters) -> list[str]:
    """Every fourth block attends."""
    interval = int(h.get("full_attention_interval", default=4))
    return ["attention" if (block + 1) % interval == 0 else "linear" for block in range(h.blocks)]


def delta_router(h: Hyperparameters) -> None:
    """llama.cpp's router, and experts in every block."""
    require(h.get("norm_topk_prob"), "norm_topk_prob false", f"llama.cpp computes {h.model_type} with true")
    require(
        h.get("decoder_sparse_step", default=1) == 1 and not h.get("mlp_only_layers"),
        "blocks without experts", f"llama.cpp computes {h.model_type} with experts in every block",
    )  # fmt: skip


# --- RWKV 7 -----------------------------------------------------------------------------------------------------------


def first_values(drafts: Drafts, _: Any) -> Drafts:
    """llama.cpp looks for the value mix of block 0 too, which nobody uses: it gets that of the learning rate."""
    unused = [draft for draft in drafts if not re.match(r"model\.layers\.0\.attention\.v[012]\.", draft.name)]
    return [
        *unused,
        *(
            replace(draft, name=draft.name.replace("attention.a", "attention.v"))
            for draft in unused
            if re.match(r"model\.layers\.0\.attention\.a[012]\.", draft.name)
        ),
    ]


MIXED = "rwkvag"  # what the mix of two neighbouring tokens goes into, in llama.cpp's order
RWKV = (
    rename(r"\.blocks\.", ".layers."), rename(r"\.ffn_norm\.", ".ln2."), rename(r"\.ffn\.", ".feed_forward."),
    rename(r"\.(self_)?attn\.", ".attention."), rename(r"\.attn_norm\.", ".attention_norm."),
    rename(r"\.g_norm\.", ".ln_x."),
    rename(r"_lora\.lora\.0\.weight$", "1.weight"), rename(r"_lora\.lora\.2\.weight$", "2.weight"),
    rename(r"_lora\.lora\.2\.bias$", "0.weight"),
    first_values,
    *(rename(rf"attention\.x_{letter}$", f"attention.x.{number}.mixed") for number, letter in enumerate(MIXED)),
    stack(r"(.*attention\.x)\.(\d)\.(mixed)"),
    rename(r"^model\.layers\.(\d+)\.attention\.x\.mixed$", r"blk.\1.time_mix_lerp_fused.weight"),
    rename(r"((attention\.[kr]_[ka]|attention\.r_k|feed_forward\.x_k))$", r"\1.weight"),
    flatten(r"(attention\.(k_k|k_a|r_k|ln_x)|feed_forward\.x_k)\."),
)  # fmt: skip
RWKV_BLOCK = (
    "attn_norm.weight", "attn_norm_2.weight", "channel_mix_key.weight", "channel_mix_lerp_k.weight",
    "channel_mix_value.weight", "time_mix_k_a.weight", "time_mix_k_k.weight", "time_mix_key.weight",
    "time_mix_lerp_fused.weight", "time_mix_ln.weight", "time_mix_output.weight", "time_mix_r_k.weight",
    "time_mix_receptance.weight", "time_mix_value.weight", "time_mix_g1.weight", "time_mix_g2.weight",
    *(f"time_mix_{letter}{number}.weight" for letter in "wav" for number in range(3)),
)  # fmt: skip

MAMBA = Family(
    "mamba",
    (
        key("context_length", int, lambda _: UNLIMITED),
        key("embedding_length", int, lambda h: h.hidden),
        key("feed_forward_length", int, lambda _: 0),
        key("attention.head_count", int, lambda _: 0),
        SIZES[0],
        key("ssm.conv_kernel", int, lambda h: h.get("conv_kernel", "d_conv", default=4)),
        key("ssm.inner_size", int, lambda h: h.get("intermediate_size", "d_inner", default=2 * h.hidden)),
        key("ssm.state_size", int, lambda h: h.get("state_size", "d_state", default=16)),
        key("ssm.time_step_rank", int, time_rank("time_step_rank")),
        key("attention.layer_norm_rms_epsilon", float, lambda h: h.get("layer_norm_epsilon", "rms_norm_eps", default=1e-5)),
        key("ssm.dt_b_c_rms", bool, lambda h: h.model_type == "falcon_mamba"),
    ),
    (CONVOLUTION, NEGATIVE_EXPONENTIAL),
    block=SSM1, checks=(twice_as_wide, usual_epsilon), scalings=("default",), shapes={"attn_norm.weight": ("hidden",)},
)  # fmt: skip

RECURRENT: dict[str, Family] = {
    "mamba": MAMBA,
    "falcon_mamba": MAMBA,
    "mamba2": Family(
        "mamba2",
        (
            key("context_length", int, lambda _: UNLIMITED),
            key("embedding_length", int, lambda h: h.hidden),
            key("feed_forward_length", int, lambda _: 0),
            key("attention.head_count", int, lambda _: 0),
            SIZES[0],
            key("ssm.conv_kernel", int, lambda h: h.get("conv_kernel", "d_conv", default=4)),
            key("ssm.inner_size", int, lambda h: h.need("num_heads") * h.need("head_dim")),
            key("ssm.state_size", int, lambda h: h.get("ssm_state_size", "state_size", "d_state", default=128)),
            key("ssm.time_step_rank", int, "num_heads"),
            key("ssm.group_count", int, lambda h: h.get("n_groups", default=1)),
            key("attention.layer_norm_rms_epsilon", float, lambda h: h.get("layer_norm_epsilon", "rms_norm_eps", default=1e-5)),
        ),
        (
            rename(r"^model\.(?=backbone|lm_head)", ""), CONVOLUTION, NEGATIVE_EXPONENTIAL, COLUMNS, STEP_BIAS,
            norm_by_groups("n_groups"),
        ),
        block=("attn_norm.weight", *SSM2, "ssm_norm.weight"), checks=(one_group("n_groups"), usual_epsilon),
        scalings=("default",), limits=limited_steps,
    ),
    "falcon_h1": Family(
        "falcon-h1",
        (
            SIZES[0], key("context_length", int, lambda h: h.get("max_position_embeddings", default=0)), SIZES[2],
            SIZES[3], *HEADS,
            key("ssm.conv_kernel", int, "mamba_d_conv"), key("ssm.inner_size", int, "mamba_d_ssm"),
            key("ssm.state_size", int, "mamba_d_state"),
            key("ssm.time_step_rank", int, lambda h: h.need("mamba_d_ssm") // h.need("mamba_d_head")),
            key("ssm.group_count", int, "mamba_n_groups"), NORMS[0], VOCABULARY, *HEAD_DIM,
            key("rope.freq_base", float, lambda h: h.global_rope.get("rope_theta")),
        ),
        FALCON,
        block=(*ATTENTION, "ffn_norm", *GATED, *SSM2), may=("ssm_norm.weight",), checks=(norm_after_gate,),
        scalings=("default",),
    ),
    "jamba": Family(
        "jamba",
        (
            *SIZES, HEADS[0],
            key("attention.head_count_kv", list, heads_where(jamba_kinds, "attention")),
            key("ssm.conv_kernel", int, "mamba_d_conv"),
            key("ssm.inner_size", int, lambda h: h.need("mamba_expand") * h.hidden),
            key("ssm.state_size", int, "mamba_d_state"),
            key("ssm.time_step_rank", int, time_rank("mamba_dt_rank")), NORMS[0],
            *EXPERT_COUNTS[:2],
        ),
        (
            rename(r"\.moe\.", ".feed_forward."), rename(r"\.experts\.0\.", "."), CONVOLUTION, NEGATIVE_EXPONENTIAL,
        ),
        block={
            "attention": (*ATTENTION, "ffn_norm.weight", *GATED),
            "mamba": (*SSM1, "ssm_dt_norm.weight", "ssm_b_norm.weight", "ssm_c_norm.weight", "ffn_norm.weight", *GATED),
        },
        kinds=jamba_kinds, checks=(no_experts,), scalings=("default",),
    ),
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
        kinds=granite_kinds, may=(*GATED, *EXPERTS, *SHARED), checks=(granite_positions,), scalings=("default",),
        limits=limited_steps, shapes=dict.fromkeys(GATED, ()),
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
            key("attention.key_length", int, lambda h: h.head_dim), key("attention.value_length", int, lambda h: h.head_dim),
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
            CONVOLUTION, NEGATIVE_EXPONENTIAL, COLUMNS, STEP_BIAS, norm_by_groups("n_groups"),
        ),
        block={
            "M": ("attn_norm.weight", *SSM2, "ssm_norm.weight"),
            "*": ATTENTION,
            "-": ("attn_norm.weight", *PLAIN),
            "E": ("attn_norm.weight", "ffn_gate_inp.weight", "ffn_up_exps.weight", "ffn_down_exps.weight"),
        },
        kinds=nemotron_kinds, activations=("relu2",), scalings=("default",), limits=limited_steps,
        may=("exp_probs_b.bias", "ffn_up_shexp.weight", "ffn_down_shexp.weight", "ffn_latent_down.weight",
             "ffn_latent_up.weight"),
    ),
    "lfm2": Family(
        "lfm2", (*LFM_KEYS, key("feed_forward_length", int, lfm_length)),
        (squeeze(r"conv\.conv\.weight$"),),
        block={kind: (*block, *GATED) for kind, block in LFM_BLOCKS.items()}, kinds=lfm_kinds,
        outer=("token_embd_norm.weight",), checks=(no_conv_bias,), scalings=("default",),
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
        outer=("token_embd_norm.weight",), checks=(no_conv_bias, lfm_router), scalings=("default",),
    ),
    "qwen3_next": Family(
        "qwen3next",
        (
            *COMMON, EXPERT_LENGTH, key("expert_shared_feed_forward_length", int, "shared_expert_intermediate_size"),
            key("ssm.conv_kernel", int, "linear_conv_kernel_dim"),
            key("ssm.state_size", int, "linear_key_head_dim"),
            key("ssm.group_count", int, "linear_num_key_heads"),
            key("ssm.time_step_rank", int, "linear_num_value_heads"),
            key("ssm.inner_size", int, lambda h: h.need("linear_value_head_dim") * h.need("linear_num_value_heads")),
            key("full_attention_interval", int, lambda h: h.get("full_attention_interval", default=4)),
            key("rope.dimension_count", int, rotary_dims(0.25)),
        ),
        (
            drop(r"^(model\.)?mtp\."),
            when(is_unfolded, add(r"(?<!linear_attn\.)norm\.weight$", 1)),
            *STACKED, CONVOLUTION, NEGATIVE_EXPONENTIAL, STEP_BIAS,
            split(r"^model\.layers\.(\d+)\.linear_attn\.in_proj_qkvz", delta_rows),
        ),
        block={
            "attention": (*ATTENTION, "post_attention_norm.weight", *HEAD_NORMS, *EXPERTS, *QWEN_SHARED),
            "linear": (
                "attn_norm.weight", "post_attention_norm.weight", "attn_qkv.weight", "attn_gate.weight", "ssm_a",
                "ssm_ba.weight", "ssm_conv1d.weight", "ssm_dt.bias", "ssm_norm.weight", "ssm_out.weight", *EXPERTS,
                *QWEN_SHARED,
            ),
        },
        kinds=delta_kinds, shapes={"attn_q.weight": ()}, checks=(delta_router, scaling_is_complete),
        scalings=("default", "linear", "yarn"),
    ),
    "rwkv7": Family(
        "rwkv7",
        (
            key("context_length", int, lambda _: UNLIMITED), SIZES[2], SIZES[0], 
            key("attention.layer_norm_epsilon", float, "layer_norm_epsilon", "norm_eps"),
            key("wkv.head_size", int, "head_size", "head_dim"),
            key("attention.decay_lora_rank", int, "lora_rank_decay", "decay_low_rank_dim"),
            key("attention.iclr_lora_rank", int, "lora_rank_iclr", "a_low_rank_dim"),
            key("attention.value_residual_mix_lora_rank", int, "lora_rank_value_residual_mix", "v_low_rank_dim"),
            key("attention.gate_lora_rank", int, "lora_rank_gate", "gate_low_rank_dim"),
            key("feed_forward_length", int, lambda h: h.get("intermediate_size", default=4 * h.hidden)),
            key("attention.head_count", int, lambda _: 0),
        ),
        RWKV, block=RWKV_BLOCK, outer=("output_norm.weight", "token_embd_norm.weight", "output.weight"),
        activations=None, scalings=("default",), shapes=dict.fromkeys(("attn_output.weight",), ()),
    ),
}  # fmt: skip
