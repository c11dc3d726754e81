"""The row of RWKV 7. Source: ``conversion/rwkv.py`` of llama.cpp."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from aird_mlx.gguf_export.changes import flatten
from aird_mlx.gguf_export.families import checks
from aird_mlx.gguf_export.families.family import Family
from aird_mlx.gguf_export.families.keys import SIZES
from aird_mlx.gguf_export.families.mamba import UNLIMITED
from aird_mlx.gguf_export.hyperparameters import key
from aird_mlx.gguf_export.pieces import Drafts, rename, stack


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
    rename(r"(attention\.(k_k|k_a|r_k)|feed_forward\.x_k)$", r"\1.weight"),
    flatten(r"(attention\.(k_k|k_a|r_k|ln_x)|feed_forward\.x_k)\."),
)  # fmt: skip
RWKV_BLOCK = (
    "attn_norm.weight", "attn_norm_2.weight", "channel_mix_key.weight", "channel_mix_lerp_k.weight",
    "channel_mix_value.weight", "time_mix_k_a.weight", "time_mix_k_k.weight", "time_mix_key.weight",
    "time_mix_lerp_fused.weight", "time_mix_ln.weight", "time_mix_output.weight", "time_mix_r_k.weight",
    "time_mix_receptance.weight", "time_mix_value.weight", "time_mix_g1.weight", "time_mix_g2.weight",
    *(f"time_mix_{letter}{number}.weight" for letter in "wav" for number in range(3)),
)  # fmt: skip
RECURRENT_NETWORK: dict[str, Family] = {
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
        RWKV, block=RWKV_BLOCK, checks=(checks.wide_heads,),
        outer=("output_norm.weight", "token_embd_norm.weight", "output.weight"),
        activations=None, scalings=("default",), shapes=dict.fromkeys(("attn_output.weight",), ()),
    ),
}  # fmt: skip
