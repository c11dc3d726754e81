"""Rows of the state space models, and of two hybrids that are made of them.

What happens to their tensors: ``A = -exp(A_log)``, convolutions without their axis of length 1 (which MLX and Hugging
Face put in different places), and one number for each head becomes a column. Source: ``conversion/mamba.py``,
``falcon_h1.py`` and ``jamba.py`` of llama.cpp.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from aird_mlx.gguf_export.changes import change, reshape, squeeze, times
from aird_mlx.gguf_export.families import checks
from aird_mlx.gguf_export.families.family import ATTENTION, GATED, Family
from aird_mlx.gguf_export.families.keys import BASE, EXPERT_COUNTS, HEAD_DIM, HEADS, NORMS, SIZES, VOCABULARY
from aird_mlx.gguf_export.hyperparameters import Hyperparameters, key
from aird_mlx.gguf_export.pieces import Drafts, Operation, rename, then, when

EPSILON = key(
    "attention.layer_norm_rms_epsilon", float, lambda h: h.get("layer_norm_epsilon", "rms_norm_eps", default=1e-5)
)
UNLIMITED = 2**20  # what the converter writes for models without positions
NEGATIVE_EXPONENTIAL = change(r"A_log$", lambda _: lambda values: -np.exp(values))
COLUMNS = reshape(r"\.(A_log|D)$", lambda _, shape: (*shape, 1))
CONVOLUTION = squeeze(r"conv1d\.weight$")
STEP_BIAS = rename(r"\.dt_bias$", ".dt_proj.bias")
SSM = ("ssm_conv1d.weight", "ssm_a", "ssm_d", "ssm_out.weight", "ssm_in.weight")
SSM1 = ("attn_norm.weight", *SSM, "ssm_x.weight", "ssm_dt.weight", "ssm_dt.bias")
SSM2 = (*SSM, "ssm_dt.bias")


def norm_by_groups(groups: str) -> Operation:
    """The gated norm of Mamba 2 as ``[group, width / group]``."""
    return reshape(
        r"(mixer|mamba)\.norm\.weight$",
        lambda h, shape: (int(h.get(groups, default=1)), shape[0] // int(h.get(groups, default=1))),
    )


def time_rank(name: str) -> Any:
    """Width of the time step's projection; ``auto`` is a sixteenth of the stream."""

    def read(h: Hyperparameters) -> int:
        rank = h.get(name, default="auto")
        return -(h.hidden // -16) if rank == "auto" else int(rank)

    return read


def is_unfolded(drafts: Drafts, _: Any) -> bool:
    """Whether a folder is in Hugging Face's layout: its convolutions end in the kernel."""
    convolution = next((draft for draft in drafts if draft.name.endswith("conv1d.weight")), None)
    return convolution is not None and len(convolution.shape) == 3 and convolution.shape[-1] != 1


def falcon_rows(h: Hyperparameters) -> np.ndarray:
    """One multiplier for each row of the mixer's input: gate, x, B, C, dt."""
    inner, state = int(h.need("mamba_d_ssm")), int(h.need("mamba_n_groups")) * int(h.need("mamba_d_state"))
    sizes = (inner, inner, state, state, int(h.need("mamba_n_heads")))
    return np.repeat(np.asarray(h.need("ssm_multipliers"), np.float32), sizes) * np.float32(h.need("ssm_in_multiplier"))


def falcon_output(drafts: Drafts, h: Hyperparameters) -> Drafts:
    """A tied output matrix of its own: MLX scales the logits by two multipliers that llama.cpp does not know."""
    scale = np.float32(h.need("lm_head_multiplier") / h.need("embedding_multiplier"))
    embedding = next(draft for draft in drafts if draft.name == "model.embed_tokens.weight")
    return [
        *(draft for draft in drafts if draft.name != "lm_head.weight"),
        replace(embedding, name="output.weight", change=then(embedding.change, lambda values: values * scale)),
    ]


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


def jamba_kinds(h: Hyperparameters) -> list[str]:
    """Which blocks attend; whether they have experts is told by their tensors."""
    period, offset = int(h.need("attn_layer_period")), int(h.need("attn_layer_offset"))
    return ["attention" if block % period == offset else "mamba" for block in range(h.blocks)]


def heads_where(kinds: Any, kind: str) -> Any:
    """Key-value heads of each block: 0 where it does not attend."""
    return lambda h: [h.kv_heads if found == kind else 0 for found in kinds(h)]


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
        EPSILON,
        key("ssm.dt_b_c_rms", bool, lambda h: h.model_type == "falcon_mamba"),
    ),
    (CONVOLUTION, NEGATIVE_EXPONENTIAL),
    block=SSM1, checks=(checks.twice_as_wide, checks.usual_epsilon), scalings=("default",),
    shapes={"attn_norm.weight": ("hidden",)},
)  # fmt: skip
STATE_SPACE: dict[str, Family] = {
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
            EPSILON,
        ),
        (
            rename(r"^model\.(?=backbone|lm_head)", ""), CONVOLUTION, NEGATIVE_EXPONENTIAL, COLUMNS, STEP_BIAS,
            norm_by_groups("n_groups"),
        ),
        block=("attn_norm.weight", *SSM2, "ssm_norm.weight"),
        checks=(checks.one_group("n_groups"), checks.usual_epsilon),
        scalings=("default",), limits=checks.limited_steps,
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
            BASE,
        ),
        FALCON,
        block=(*ATTENTION, "ffn_norm", *GATED, *SSM2), may=("ssm_norm.weight",), checks=(checks.norm_after_gate,),
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
        kinds=jamba_kinds, checks=(checks.no_experts,), scalings=("default",),
    ),
}  # fmt: skip
