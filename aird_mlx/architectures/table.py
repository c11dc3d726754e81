"""A row per model type of mlx-lm, in the names its model files use.

What is never pruned: embeddings, norms, heads, convolutions, routers, and the linears that only set the gates and steps
of a recurrence (a few percent of its weights, and what its memory hangs on).

Source: mlx_lm/models/*.py; each row is run by ``tests/test_architectures.py``.
"""

from __future__ import annotations

from typing import Any

from aird_mlx.architectures.parts import Architecture, Experts, Names, Part


def _part(kind: str, at: str, *groups: str, norm: str | None = None, kept: str = "") -> Part:
    """A part whose linears are attributes of ``at``; the names of a group are separated by spaces."""
    return Part(kind, tuple(_names(at, group) for group in groups), norm, kept=_names(at, kept))


def _names(at: str, words: str) -> Names:
    return tuple(f"{at}.{word}" if at else word for word in words.split())


def _attention(at: str = "self_attn", reads: str = "q_proj k_proj v_proj", writes: str = "o_proj", **more: Any) -> Part:
    return _part("attention", at, reads, writes, **more)


def _mlp(at: str = "mlp", reads: str = "gate_proj up_proj", writes: str = "down_proj", **more: Any) -> Part:
    return _part("mlp", at, reads, writes, **more)


def _shared(at: str, reads: str = "gate_proj up_proj", writes: str = "down_proj", **more: Any) -> Part:
    return _part("shared experts", at, reads, writes, **more)


def _experts(
    at: str,
    router: str,
    *,
    reads: str = "gate_proj up_proj",
    writes: str = "down_proj",
    module: str = "switch_mlp",
    counts: str = "",
    before: str = "",
    after: str = "",
    **keys: Any,
) -> Part:
    """Fused experts in ``at.module``; ``router`` names what is sliced with them, ``before`` and ``after`` linears that
    all tokens pass."""
    holder = f"{at}.{module}"
    sliced = _names(at, router)
    groups = (_names(at, before), _names(holder, reads), _names(holder, writes), _names(at, after))
    kept = tuple(name.removesuffix(".weight") for name in sliced if name.endswith(".weight"))
    return Part(
        "experts",
        tuple(group for group in groups if group),
        experts=Experts(holder, sliced, _names(at, counts), **keys),
        kept=kept,
    )


def _row(
    *parts: Part, blocks: str = "model.layers", embedding: str = "model.embed_tokens", **more: Any
) -> Architecture:
    return Architecture(blocks, embedding, parts, **more)


_LLAMA = _row(_attention(), _mlp())
_LIKE_LLAMA = (
    "llama", "mistral", "ministral3", "qwen2", "qwen3", "gemma", "smollm3", "stablelm", "cohere", "cohere2", "granite",
    "internlm3", "minicpm", "helium", "seed_oss", "iquestcoder", "xverse", "ernie4_5", "hunyuan_v1_dense", "mimo",
)  # fmt: skip
# Both norms after the sublayer, none or one before it.
_NORMED = _row(_attention(norm="post_attention_layernorm"), _mlp(norm="post_feedforward_layernorm"))
_FUSED_MLP = {"reads": "gate_up_proj"}

_QWEN_EXPERTS = (
    _experts("mlp", "gate.weight", counts="num_experts"),
    Part(
        "shared experts",
        (("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"), ("mlp.shared_expert.down_proj",)),
        kept=("mlp.shared_expert_gate",),
    ),
)
_DEEPSEEK_ATTENTION = _part(
    "attention", "self_attn", "q_proj q_a_proj kv_a_proj_with_mqa", "q_b_proj", "kv_b_proj", "o_proj"
)
_DEEPSEEK_EXPERTS = (
    _experts(
        "mlp",
        "gate.weight gate.e_score_correction_bias",
        counts="gate.n_routed_experts",
        config="n_routed_experts",
        groups="n_group",
    ),
    _shared("mlp.shared_experts"),
)
_GRANITE_EXPERTS = _experts(
    "block_sparse_moe", "router.layer.weight", counts="router.num_experts", config="num_local_experts"
)
_MAMBA1 = {"kept": "x_proj dt_proj"}

TABLE: dict[str, Architecture] = {
    # Dense: llama and what is built like it.
    **dict.fromkeys(_LIKE_LLAMA, _LLAMA),
    "glm": _row(_attention(), _mlp(**_FUSED_MLP)),
    "internlm2": _row(
        _attention("attention", "wqkv", "wo"),
        _mlp("feed_forward", "w1 w3", "w2"),
        embedding="model.tok_embeddings",
        head="output",
    ),
    "phi3": _row(_attention(reads="qkv_proj"), _mlp(**_FUSED_MLP)),
    "nemotron": _row(_attention(), _mlp(reads="up_proj")),
    "phi": _row(_attention(writes="dense"), _mlp(reads="fc1", writes="fc2")),
    "starcoder2": _row(_attention(), _mlp(reads="c_fc", writes="c_proj")),
    "gpt2": _row(
        _attention("attn", "c_attn", "c_proj"),
        _mlp(reads="c_fc", writes="c_proj"),
        blocks="model.h",
        embedding="model.wte",
    ),
    "gpt_neox": _row(
        _attention("attention", "query_key_value", "dense"),
        _mlp(reads="dense_h_to_4h", writes="dense_4h_to_h"),
        blocks="model.h",
        embedding="model.embed_in",
        head="model.embed_out",
    ),
    # Dense, with a norm between each writer and the stream.
    **dict.fromkeys(("gemma2", "gemma3_text", "olmo2", "olmo3", "exaone4"), _NORMED),
    "glm4": _row(_attention(norm="post_self_attn_layernorm"), _mlp(**_FUSED_MLP, norm="post_mlp_layernorm")),
    # Mixtures of experts.
    "mixtral": _row(
        _attention(), _experts("block_sparse_moe", "gate.weight", counts="num_experts", config="num_local_experts")
    ),
    "phimoe": _row(
        _attention(),
        _experts("block_sparse_moe", "gate.weight gate.bias", counts="num_experts", config="num_local_experts"),
    ),
    **dict.fromkeys(("qwen2_moe", "qwen3_moe"), _row(_attention(), _mlp(), *_QWEN_EXPERTS)),
    "olmoe": _row(_attention(), _experts("mlp", "gate.weight", counts="num_experts")),
    "granitemoe": _row(_attention(), _GRANITE_EXPERTS),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), _row(_DEEPSEEK_ATTENTION, _mlp(), *_DEEPSEEK_EXPERTS)),
    **dict.fromkeys(("deepseek", "glm4_moe"), _row(_attention(), _mlp(), *_DEEPSEEK_EXPERTS)),
    "gpt_oss": _row(
        _attention(),
        _experts(
            "mlp",
            "router.weight router.bias",
            module="experts",
            counts="num_local_experts",
            config="num_local_experts",
        ),
    ),
    "ernie4_5_moe": _row(
        _attention(),
        _mlp(),
        _experts("mlp", "gate.weight", config="moe_num_experts", chosen="moe_k"),
        _shared("mlp.shared_experts"),
    ),
    # State space models, hybrids and recurrent networks.
    "mamba": _row(
        _part("ssm", "mixer", "in_proj", "out_proj", **_MAMBA1),
        blocks="backbone.layers",
        embedding="backbone.embeddings",
    ),
    "mamba2": _row(
        _part("ssm", "mixer", "in_proj", "out_proj"), blocks="backbone.layers", embedding="backbone.embeddings"
    ),
    "falcon_h1": _row(_part("ssm", "mamba", "in_proj", "out_proj"), _attention(), _mlp("feed_forward")),
    "jamba": _row(
        _part("ssm", "mamba", "in_proj", "out_proj", **_MAMBA1),
        _attention(),
        _mlp("feed_forward"),
        _experts("feed_forward", "router.weight"),
    ),
    "nemotron_h": _row(
        _part("ssm", "mixer", "in_proj", "out_proj"),
        _attention("mixer"),
        _mlp("mixer", "up_proj"),
        _experts(
            "mixer",
            "gate.weight gate.e_score_correction_bias",
            reads="fc1",
            writes="fc2",
            before="fc1_latent_proj",
            after="fc2_latent_proj",
            counts="gate.n_routed_experts",
            config="n_routed_experts",
            groups="n_group",
        ),
        _shared("mixer.shared_experts", "up_proj"),
        blocks="backbone.layers",
        embedding="backbone.embeddings",
    ),
    "granitemoehybrid": _row(
        _part("ssm", "mamba", "in_proj", "out_proj"),
        _attention(),
        _mlp(),
        _GRANITE_EXPERTS,
        _shared("shared_mlp", "input_linear", "output_linear"),
    ),
    "lfm2": _row(
        _part("convolution", "conv", "in_proj", "out_proj"),
        _attention(writes="out_proj"),
        _mlp("feed_forward", "w1 w3", "w2"),
    ),
    "lfm2_moe": _row(
        _part("convolution", "conv", "in_proj", "out_proj"),
        _attention(writes="out_proj"),
        _mlp("feed_forward"),
        _experts("feed_forward", "gate.weight expert_bias", counts="num_experts"),
    ),
    "qwen3_next": _row(
        _part("recurrence", "linear_attn", "in_proj_qkvz", "out_proj", kept="in_proj_ba"),
        _attention(),
        _mlp(),
        *_QWEN_EXPERTS,
    ),
    "recurrent_gemma": _row(
        _part("recurrence", "temporal_block", "linear_y linear_x", "linear_out"),
        _attention("temporal_block"),
        _mlp("mlp_block"),
    ),
    "rwkv7": _row(
        _part(
            "recurrence",
            "attn",
            "r_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            kept=" ".join(f"{one}_lora.lora.{number}" for one in "wvag" for number in (0, 2)),
        ),
        _mlp("ffn", "key", "value"),
        embedding="model.embeddings",
        entry="pre_norm",
        carried=1,
        limit="on Metal its kernel knows no gradient: reconstruct and distill need the CPU (mx.set_default_device)",
    ),
}
# Words that mlx-lm maps to the file of another type.
TABLE["falcon_mamba"] = TABLE["mamba"]
TABLE["kimi_k2"] = TABLE["joyai_llm_flash"] = TABLE["deepseek_v3"]
