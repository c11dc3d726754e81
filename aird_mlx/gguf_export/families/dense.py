"""Rows of the dense families: attention and one feed-forward network in every block."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from aird_mlx.gguf_export.changes import add
from aird_mlx.gguf_export.families import checks
from aird_mlx.gguf_export.families.checks import ROPED
from aird_mlx.gguf_export.families.family import AFTER, ATTENTION, BLOCK, GATED, HEAD_NORMS, PLAIN, Family
from aird_mlx.gguf_export.families.keys import (
    COMMON,
    HEAD_DIM,
    HEADS,
    NO_SCALING,
    NORMS,
    ROPE,
    ROTATED_HEAD,
    SIZES,
    UNUSUAL_BASE,
    VOCABULARY,
    WINDOW,
    WINDOW_LAYERS,
    rotary_dims,
    sliding_layers,
)
from aird_mlx.gguf_export.families.rope import ROTATED, rope_frequency_factors
from aird_mlx.gguf_export.hyperparameters import Hyperparameters, key
from aird_mlx.gguf_export.pieces import drop, stack

GELU = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu")
LLAMA = Family(
    "llama", (*COMMON, VOCABULARY, ROTATED_HEAD), (ROTATED,),
    scalings=("default", "linear", "yarn", "llama3", "dynamic"), checks=ROPED, limits=checks.layer_notes,
    extra=rope_frequency_factors,
)  # fmt: skip


def rounded_rotary_dims(h: Hyperparameters) -> int:
    """As the converter rounds it."""
    return int(float(h.global_rope.get("partial_rotary_factor") or 1.0) * h.hidden) // h.heads


def exaone_layers(h: Hyperparameters) -> list[bool] | None:
    """From the pattern that MLX reads, ``LLLG``."""
    pattern = h.get("sliding_window_pattern")
    if not pattern or h.get("sliding_window") is None:
        return sliding_layers(h) if h.get("sliding_window") is not None else None
    return [pattern[block % len(pattern)] == "L" for block in range(h.blocks)]


def in_ministral(name: str) -> Callable[[Hyperparameters], float | None]:
    """An entry of the rope parameters that only this kind of language model has."""
    return lambda h: h.global_rope.get(name) if h.get("model_type") == "ministral3" else None


HUNYUAN_CONTEXT = 256 * 1024


def when_dynamic(value: Any) -> Callable[[Hyperparameters], Any]:
    """A value that only a model with dynamic rope scaling gets."""
    return lambda h: value if h.scaling == "dynamic" else None


def hunyuan_base(h: Hyperparameters) -> float | None:
    """Hunyuan's dynamic scaling is another base at every length."""
    if h.scaling != "dynamic":
        return None
    return float(h.global_rope["rope_theta"]) * float(h.global_rope["alpha"]) ** (h.head_dim / (h.head_dim - 2))


DENSE: dict[str, Family] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "internlm3": LLAMA,
    "qwen2": Family("qwen2", COMMON, checks=ROPED, limits=checks.layer_notes),
    "qwen3": Family("qwen3", COMMON, block=(*BLOCK, *HEAD_NORMS), checks=ROPED, limits=checks.layer_notes),
    "gemma": Family(
        "gemma", (*SIZES, *HEADS, *NORMS, *HEAD_DIM, UNUSUAL_BASE), (add(r"norm\.weight$", 1), drop(r"^lm_head\.")),
        activations=GELU, scalings=("default",), checks=(checks.plain_rope,),
    ),
    "gemma2": Family(
        "gemma2",
        (
            *SIZES, *HEADS, *NORMS, *HEAD_DIM, UNUSUAL_BASE,
            key("attn_logit_softcapping", float, "attn_logit_softcapping"),
            key("final_logit_softcapping", float, "final_logit_softcapping"),
            WINDOW,
        ),
        (add(r"norm\.weight$", 1), drop(r"^lm_head\.")),
        block=(*BLOCK, *AFTER), activations=GELU, scalings=("default",),
        checks=(checks.plain_rope, checks.scale_is_head_dim),
        limits=checks.full_in_mlx,
    ),
    "gemma3_text": Family(
        "gemma3", (*COMMON, WINDOW), (add(r"norm\.weight$", 1),),
        block=(*BLOCK, *AFTER, *HEAD_NORMS), activations=GELU, scalings=("default", "linear"),
        checks=(checks.scale_is_head_dim, checks.pattern_is(6), checks.scaling_is_complete),
    ),
    "phi": Family(
        "phi2",
        (
            *SIZES, HEADS[0], key("attention.head_count_kv", int, lambda h: h.heads),
            NORMS[1], key("rope.dimension_count", int, rounded_rotary_dims), UNUSUAL_BASE,
        ),
        activations=GELU, block=(*ATTENTION, *PLAIN), scalings=("default",),
    ),
    "olmo2": Family("olmo2", COMMON, block=(*ATTENTION[1:], *GATED, *AFTER, *HEAD_NORMS), checks=ROPED),
    "olmo3": Family(
        "olmo2",
        (*COMMON, key("rope.freq_base_swa", float, lambda h: h.global_rope.get("rope_theta")), WINDOW, WINDOW_LAYERS),
        block=(*ATTENTION[1:], *GATED, *AFTER, *HEAD_NORMS), checks=(checks.usual_yarn, checks.scaling_is_complete),
        scalings=("default", "yarn"),
    ),
    "smollm3": Family(
        "smollm3", LLAMA.keys, (ROTATED,), checks=(*ROPED, checks.smollm_layers), limits=checks.layer_notes,
    ),
    "stablelm": Family(
        "stablelm",
        (
            *SIZES, key("rope.dimension_count", int, rotary_dims(0.25)), *HEADS, UNUSUAL_BASE,
            key("use_parallel_residual", bool, lambda h: h.get("use_parallel_residual", default=True)),
            key("attention.layer_norm_epsilon", float, "layer_norm_eps", "norm_eps"),
        ),
        (stack(r"(.*_layernorm)\.norms\.(\d+)\.(weight)"),),
        block=(*ATTENTION, *GATED), may=("ffn_norm.weight", *HEAD_NORMS), scalings=("default",),
    ),
    "starcoder2": Family(
        "starcoder2", COMMON, activations=GELU, block=(*ATTENTION, "ffn_norm.weight", *PLAIN), checks=ROPED,
        scalings=("default",),
    ),
    "cohere": Family(
        "command-r",
        (
            *COMMON, key("context_length", int, "model_max_length", "max_position_embeddings"),
            key("logit_scale", float, "logit_scale"), NO_SCALING,
        ),
        block=(*ATTENTION, *GATED), may=HEAD_NORMS, scalings=("default",),
        checks=(checks.norms_of_large_cohere,),
    ),
    "cohere2": Family(
        "cohere2",
        (
            *COMMON, key("logit_scale", float, "logit_scale"), WINDOW, VOCABULARY,
            key("rope.dimension_count", int, rotary_dims()), NO_SCALING,
        ),
        block=(*ATTENTION, *GATED), scalings=("default",), checks=(checks.pattern_is(4),),
    ),
    "granite": Family(
        "granite",
        (
            *SIZES, *HEADS, *ROPE, *NORMS, VOCABULARY, ROTATED_HEAD,
            key("attention.scale", float, "attention_multiplier"),
            key("embedding_scale", float, "embedding_multiplier"),
            key("residual_scale", float, "residual_multiplier"),
            key("logit_scale", float, "logits_scaling"),
        ),
        (ROTATED,), checks=ROPED, extra=rope_frequency_factors, scalings=("default", "linear", "yarn", "llama3"),
    ),
    "exaone4": Family(
        "exaone4",
        (*COMMON, VOCABULARY, WINDOW, key("attention.sliding_window_pattern", list, exaone_layers)),
        block=(*ATTENTION[1:], *GATED, *AFTER, *HEAD_NORMS), checks=(*ROPED, checks.full_exaone),
        extra=rope_frequency_factors,
        scalings=("default", "linear", "yarn", "llama3"),
    ),
    "glm4": Family(
        "glm4", (*COMMON, key("rope.dimension_count", int, rotary_dims(0.5))),
        block=(*ATTENTION, "ffn_norm.weight", *PLAIN, *AFTER), shapes={"ffn_up.weight": ()}, scalings=("default",),
    ),
    "minicpm": Family(
        "minicpm",
        (
            *COMMON,
            key("embedding_scale", float, "scale_emb"),
            key("residual_scale", float, lambda h: h.need("scale_depth") / math.sqrt(h.blocks)),
            key("logit_scale", float, lambda h: h.hidden / h.need("dim_model_base")),
        ),
        (ROTATED,), checks=ROPED, scalings=("default", "linear"),
    ),
    "seed_oss": Family("seed_oss", COMMON, block=(*ATTENTION, *GATED, "post_attention_norm.weight"), checks=ROPED),
    "nemotron": Family(
        "nemotron",
        (
            *COMMON, VOCABULARY,
            key(
                "attention.layer_norm_epsilon", float,
                "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps",
            ),
            key("rope.dimension_count", int, rounded_rotary_dims),
            key("rope.scaling.type", str, lambda h: "linear" if h.global_rope.get("factor") else "none"),
            key("rope.scaling.factor", float, lambda h: h.global_rope.get("factor")),
        ),
        (add(r"norm\.weight$", 1),), activations=("relu2",), block=(*ATTENTION, "ffn_norm.weight", *PLAIN),
        scalings=("default", "linear"),
    ),
    "ministral3": Family(
        "mistral3",
        (
            *COMMON, VOCABULARY, ROTATED_HEAD,
            key("rope.scaling.yarn_log_multiplier", float, lambda h: h.global_rope.get("mscale_all_dim")),
            key("attention.temperature_scale", float, lambda h: h.global_rope.get("llama_4_scaling_beta")),
        ),
        (ROTATED,), scalings=("yarn",), checks=(checks.mistral_yarn,), limits=checks.layer_notes,
    ),
    "mistral3": Family(
        "mistral3",
        (
            *COMMON, VOCABULARY, ROTATED_HEAD,
            key("rope.scaling.yarn_log_multiplier", float, in_ministral("mscale_all_dim")),
            key("attention.temperature_scale", float, in_ministral("llama_4_scaling_beta")),
        ),
        (ROTATED,), scalings=("default", "yarn"), checks=(checks.plain_rope, checks.scaling_is_complete),
        limits=checks.layer_notes,
    ),
    "exaone": Family(
        "exaone", (*COMMON, key("rope.dimension_count", int, rotary_dims())), checks=ROPED,
        scalings=("default", "linear", "yarn", "llama3"), extra=rope_frequency_factors,
    ),
    "hunyuan_v1_dense": Family(
        "hunyuan-dense",
        (
            *COMMON,
            key("rope.freq_base", float, hunyuan_base),
            key("rope.scaling.type", str, when_dynamic("none")),
            key("rope.scaling.factor", float, when_dynamic(1.0)),
            key("rope.scaling.original_context_length", int, when_dynamic(HUNYUAN_CONTEXT)),
            key("context_length", int, when_dynamic(HUNYUAN_CONTEXT)),
        ),
        block=BLOCK, may=HEAD_NORMS, checks=(checks.plain_rope, checks.whole_rotation), scalings=("default", "dynamic"),
    ),
}  # fmt: skip
