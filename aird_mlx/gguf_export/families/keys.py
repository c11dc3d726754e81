"""The GGUF keys that most families share, in the order and under the conditions of llama.cpp's converter.

A family's row is a tuple of these and its own. Source: ``TextModel.set_gguf_parameters`` in ``conversion/base.py``.
"""

from __future__ import annotations

from typing import Any

import gguf

from aird_mlx.gguf_export.hyperparameters import EXPERTS, EXPERTS_USED, GATINGS, Hyperparameters, Key, key, require

SCALINGS = {
    "linear": gguf.RopeScalingType.LINEAR,
    "yarn": gguf.RopeScalingType.YARN,
    "longrope": gguf.RopeScalingType.LONGROPE,
    "su": gguf.RopeScalingType.LONGROPE,
}
USUAL_BASE = 10000.0
YARN = {  # the config's word -> GGUF's
    "extrapolation_factor": "rope.scaling.yarn_ext_factor",
    "attention_factor": "rope.scaling.yarn_attn_factor",
    "attn_factor": "rope.scaling.yarn_attn_factor",
    "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow",
}


def no_scaling(_: Hyperparameters) -> str:
    """For families whose converter says so in so many words."""
    return str(gguf.RopeScalingType.NONE.value)


def gating(hyperparameters: Hyperparameters) -> int | None:
    """How the router turns scores into weights, where the config says."""
    name = hyperparameters.get(
        "score_function", "scoring_func", "score_func", "moe_router_activation", "moe_router_activation_func"
    )
    if name is None:
        return None
    require(name in GATINGS, f"router function {name!r}", f"{' or '.join(GATINGS)} is needed")
    return int(GATINGS[name])


def sliding_layers(hyperparameters: Hyperparameters) -> list[bool] | None:
    """Which blocks look back only over the window, where the config lists them."""
    kinds = hyperparameters.get("layer_types")
    return None if kinds is None else [kind == "sliding_attention" for kind in kinds]


def rotary_dims(default: float = 1.0) -> Any:
    """Reads how many numbers of a head are rotated, by a share of it."""

    def read(hyperparameters: Hyperparameters) -> int:
        share = hyperparameters.global_rope.get("partial_rotary_factor", default)
        return int(float(share) * hyperparameters.head_dim)

    return read


def unusual_base(hyperparameters: Hyperparameters) -> float | None:
    """The rope's base for families whose converter leaves it out: None where it is what llama.cpp takes then."""
    base = float(hyperparameters.global_rope.get("rope_theta") or USUAL_BASE)
    return None if base == USUAL_BASE else base


def _scaled(name: str, kinds: tuple[str, ...] = ("linear", "yarn")) -> Any:
    def read(hyperparameters: Hyperparameters) -> Any:
        rope = hyperparameters.global_rope
        told = hyperparameters.scaling in kinds and (rope.get("factor") is not None or "longrope" in kinds)
        return rope.get(name) if told else None

    return read


def _scaling_type(hyperparameters: Hyperparameters) -> str | None:
    kind = SCALINGS.get(hyperparameters.scaling)
    if kind is None or (kind != gguf.RopeScalingType.LONGROPE and hyperparameters.global_rope.get("factor") is None):
        return None
    return str(kind.value)


SIZES = (
    key("block_count", int, lambda h: h.blocks),
    key(
        "context_length", int,
        "max_position_embeddings", "n_ctx", "n_positions", "max_length", "max_sequence_length", "model_max_length",
    ),
    key("embedding_length", int, "hidden_size", "n_embd", "dim"),
    key(
        "feed_forward_length", int,
        "prefix_dense_intermediate_size", "dense_intermediate_size", "intermediate_size", "n_inner", "hidden_dim",
    ),
)  # fmt: skip
HEADS = (
    key("attention.head_count", int, "num_attention_heads", "n_head", "n_heads"),
    key("attention.head_count_kv", int, "num_key_value_heads", "n_kv_heads"),
)
BASE = key("rope.freq_base", float, lambda h: h.global_rope.get("rope_theta"))
ROPE = (
    key("rope.scaling.type", str, _scaling_type),
    key("rope.scaling.factor", float, _scaled("factor")),
    key("rope.scaling.original_context_length", int, _scaled("original_max_position_embeddings", ("yarn",))),
    *(key(name, float, _scaled(entry, ("yarn",))) for entry, name in YARN.items()),
    BASE,
    key("rope.freq_base_swa", float, lambda h: (h.rope.get("sliding_attention") or {}).get("rope_theta")),
)
NORMS = (
    key("attention.layer_norm_rms_epsilon", float, "rms_norm_eps", "norm_eps"),
    key("attention.layer_norm_epsilon", float, "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
)
EXPERT_COUNTS = (
    key("expert_count", int, *EXPERTS),
    key("expert_used_count", int, *EXPERTS_USED),
    key("expert_group_count", int, "n_group"),
    key("expert_group_used_count", int, "topk_group"),
    key("expert_gating_func", int, gating),
)
HEAD_DIM = (
    key("attention.key_length", int, "head_dim"),
    key("attention.value_length", int, "head_dim"),
)
COMMON: tuple[Key, ...] = (*SIZES, *HEADS, *ROPE, *NORMS, *EXPERT_COUNTS, *HEAD_DIM)
VOCABULARY = key("vocab_size", int, "vocab_size")
ROTATED_HEAD = key("rope.dimension_count", int, lambda h: h.head_dim)
WINDOW = key("attention.sliding_window", int, "sliding_window")
WINDOW_LAYERS = key("attention.sliding_window_pattern", list, sliding_layers)
NO_SCALING = key("rope.scaling.type", str, no_scaling)
UNUSUAL_BASE = key("rope.freq_base", float, unusual_base)
