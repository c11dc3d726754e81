"""The rows of linear attention by the gated delta rule. Source: ``conversion/qwen.py`` of llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from aird_mlx.gguf_export.changes import add
from aird_mlx.gguf_export.families import checks
from aird_mlx.gguf_export.families.experts import EXPERT_LENGTH, QWEN_SHARED, STACKED
from aird_mlx.gguf_export.families.family import ATTENTION, EXPERTS, HEAD_NORMS, Family
from aird_mlx.gguf_export.families.keys import COMMON, rotary_dims
from aird_mlx.gguf_export.families.mamba import CONVOLUTION, NEGATIVE_EXPONENTIAL, STEP_BIAS, is_unfolded
from aird_mlx.gguf_export.hyperparameters import Hyperparameters, key
from aird_mlx.gguf_export.pieces import Rows, drop, split, when


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


DELTA: dict[str, Family] = {
    "qwen3_next": Family(
        "qwen3next",
        (
            *COMMON, EXPERT_LENGTH, key("expert_shared_feed_forward_length", int, "shared_expert_intermediate_size"),
            key("ssm.conv_kernel", int, "linear_conv_kernel_dim"),
            key("ssm.state_size", int, "linear_key_head_dim"),
            key("ssm.group_count", int, "linear_num_key_heads"),
            key("ssm.time_step_rank", int, "linear_num_value_heads"),
            key("ssm.inner_size", int, lambda h: h.need("linear_value_head_dim") * h.need("linear_num_value_heads")),
            key("attention.recurrent_layers", list, lambda h: [kind == "linear" for kind in delta_kinds(h)]),
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
        kinds=delta_kinds, shapes={"attn_q.weight": ()}, checks=(checks.delta_router, checks.scaling_is_complete),
        scalings=("default", "linear", "yarn"),
    ),
}  # fmt: skip
