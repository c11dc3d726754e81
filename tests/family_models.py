"""Tiny random models of every family of the export, in both layouts, and what MLX computes with them.

A name after + is a variant of the model type before it.
"""

from __future__ import annotations

import copy
import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import _get_classes

from aird_mlx.gguf_export.runtime import LlamaRuntime
from conftest import write_tokenizer
from hugging_face import LAYOUTS

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "rope_theta": 5000.0,  # not llama.cpp's default, so that a missing key shows
}
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
GEMMA = {"head_dim": 32, "hidden_act": "gelu_pytorch_tanh"}
DENSE: dict[str, dict[str, Any]] = {
    "gemma": GEMMA,
    "gemma2": {
        "query_pre_attn_scalar": 32, "sliding_window": 4096, "attn_logit_softcapping": 10.0,
        "final_logit_softcapping": 60.0, **GEMMA,
    },
    "gemma3_text": {
        "query_pre_attn_scalar": 32, "sliding_window": 64, "num_hidden_layers": 6,
        "rope_local_base_freq": 700.0, **GEMMA,
    },
    "phi": {"partial_rotary_factor": 0.5, "num_key_value_heads": 4, "intermediate_size": 256, "layer_norm_eps": 1e-5},
    "phi3": {"original_max_position_embeddings": 512, **UNTIED},
    "olmo": {
        "d_model": 64, "n_layers": 4, "mlp_hidden_size": 192, "n_heads": 4, "embedding_size": 320,
        "weight_tying": False,
        "num_key_value_heads": 4,
    },
    "olmo2": UNTIED,
    "olmo3": {"sliding_window": 64, **UNTIED},
    "smollm3": TIED,
    "stablelm": {"use_qkv_bias": True, "partial_rotary_factor": 0.25, "layer_norm_eps": 1e-5},
    "starcoder2": {"norm_epsilon": 1e-5, **TIED},
    "gpt2": {
        "n_ctx": 512, "n_positions": 512, "n_embd": 64, "n_head": 4, "n_layer": 4, "layer_norm_epsilon": 1e-5,
    },
    "gpt_neox": {"layer_norm_eps": 1e-5, "rotary_emb_base": 5000, "rotary_pct": 0.25, "intermediate_size": 256},
    "cohere": {"layer_norm_eps": 1e-5, "logit_scale": 0.25, "num_key_value_heads": 2},
    "cohere2": {"layer_norm_eps": 1e-5, "logit_scale": 0.25, "head_dim": 16, "sliding_window": 64},
    "granite": {
        "logits_scaling": 4.0, "attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.4,
        "attention_bias": False, "mlp_bias": False, **TIED,
    },
    "exaone4": {"head_dim": 16, "rope_scaling": None, "sliding_window": None, "sliding_window_pattern": None, **UNTIED},
    "internlm3": {"qkv_bias": True, **UNTIED},
    "glm4": {"attention_bias": True, "head_dim": 16, "partial_rotary_factor": 0.5},
    "minicpm": {"dim_model_base": 32, "scale_depth": 1.1, "scale_emb": 3.0, **UNTIED},
    "seed_oss": {"head_dim": 16, "attention_bias": True, **UNTIED},
    "nemotron": {"hidden_act": "relu2", "norm_eps": 1e-5, "partial_rotary_factor": 0.5, **UNTIED},
    "ministral3": {
        "head_dim": 16, "rope_parameters": {
            "rope_type": "yarn", "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128,
            "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
            "rope_theta": 5000.0,
        }, **UNTIED,
    },
}  # fmt: skip
MINISTRAL = DENSE["ministral3"]
DENSE |= {
    "phi3+longrope": {
        "original_max_position_embeddings": 128,
        "rope_scaling": {
            "type": "longrope",
            "long_factor": [1.0, 1.1, 1.3, 1.7, 2.2, 2.8, 3.5, 4.0],
            "short_factor": [1.0, 1.0, 1.1, 1.1, 1.2, 1.2, 1.3, 1.3],
        },
        **UNTIED,
    },
    "mistral3": {"text_config": {"model_type": "mistral", **SIZES, "head_dim": 16, **UNTIED}},
    "mistral3+silent": {"text_config": {"model_type": "mistral", **SIZES, "head_dim": 16}},  # whether it is tied
    "mistral3+ministral3": {"text_config": {"model_type": "ministral3", **SIZES, **MINISTRAL}},
    "exaone": {"num_layers": 4, "layer_norm_epsilon": 1e-5, "activation_function": "silu", **TIED},
    "internlm2": {"bias": False, **UNTIED},
    "hunyuan_v1_dense": {
        "use_qk_norm": True,
        "head_dim": 16,
        "max_position_embeddings": 32768,
        "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0},
        **TIED,
    },
}
EXPERTS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, **UNTIED},
    "qwen2_moe": {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "shared_expert_intermediate_size": 96,
        "norm_topk_prob": False, **UNTIED,
    },
    "qwen3_moe": {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "norm_topk_prob": True, "head_dim": 16, **TIED,
    },
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 4, **UNTIED},
    "granitemoe": {
        "logits_scaling": 4.0, "attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.4,
        "attention_bias": False, "num_local_experts": 4, "num_experts_per_tok": 2, **TIED,
    },
    "deepseek_v2": {
        "moe_intermediate_size": 48, "n_shared_experts": 2, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "kv_lora_rank": 32, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
        "first_k_dense_replace": 1, "rms_norm_eps": 1e-6, "topk_method": "greedy", "num_key_value_heads": 4,
        "routed_scaling_factor": 1.5,
        "rope_scaling": {
            "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 32, "beta_slow": 1,
            "mscale": 0.707, "mscale_all_dim": 0.707,
        },
    },
    "deepseek_v3": {
        "moe_intermediate_size": 48, "n_shared_experts": 1, "n_routed_experts": 8, "num_experts_per_tok": 2,
        "kv_lora_rank": 32, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
        "first_k_dense_replace": 1, "rms_norm_eps": 1e-6, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
        "num_key_value_heads": 4, "n_group": 2, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
    },
    "deepseek": {
        "moe_intermediate_size": 48, "n_shared_experts": 2, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "moe_layer_freq": 1, "first_k_dense_replace": 1,
    },
    "gpt_oss": {
        "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 64,
        "rope_scaling": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 32.0,
            "beta_slow": 1.0, "truncate": False,
        },
    },
    "ernie4_5_moe": {
        "use_bias": False, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 48, "moe_num_shared_experts": 2,
        "moe_layer_start_index": 1, **TIED,
    },
    "dots1": {
        "first_k_dense_replace": 1, "moe_intermediate_size": 48, "n_routed_experts": 4, "n_shared_experts": 1,
        "norm_topk_prob": True, "num_experts_per_tok": 2, "routed_scaling_factor": 1.5, "scoring_func": "sigmoid",
        "num_key_value_heads": 4, "head_dim": 16, **UNTIED,
    },
    "ernie4_5": {"use_bias": False, "head_dim": 16, **TIED},
    "glm4_moe": {
        "moe_intermediate_size": 48, "norm_topk_prob": True, "n_group": 1, "head_dim": 16, "topk_group": 1,
        "n_shared_experts": 1, "n_routed_experts": 4, "routed_scaling_factor": 1.5, "num_experts_per_tok": 2,
        "first_k_dense_replace": 1, "rope_scaling": None, "use_qk_norm": True, "attention_bias": True,
        "partial_rotary_factor": 0.5, **UNTIED,
    },
}  # fmt: skip
LIMIT = [0.0, float("inf")]
RECURRENT: dict[str, dict[str, Any]] = {
    "mamba": {
        "intermediate_size": 128, "state_size": 8, "conv_kernel": 4, "use_bias": False, "use_conv_bias": True,
        "time_step_rank": 4, "layer_norm_epsilon": 1e-5, **TIED,
    },
    "falcon_mamba": {
        "intermediate_size": 128, "state_size": 8, "conv_kernel": 4, "use_bias": False, "use_conv_bias": True,
        "time_step_rank": 4, "layer_norm_epsilon": 1e-5, "mixer_rms_eps": 1e-5, **UNTIED,
    },
    "mamba2": {
        "num_heads": 8, "head_dim": 16, "intermediate_size": 128, "state_size": 16, "layer_norm_epsilon": 1e-5,
        "conv_kernel": 4, "n_groups": 1, "use_bias": False, "use_conv_bias": True, "time_step_limit": LIMIT,
        "time_step_rank": 8, "expand": 2, **TIED,
    },
    "falcon_h1": {
        "head_dim": 16, "mamba_d_ssm": 96, "mamba_d_head": 16, "mamba_n_heads": 6, "mamba_d_state": 16,
        "mamba_n_groups": 2, "mamba_d_conv": 4, "mamba_conv_bias": True, "rope_theta": 5000.0, **UNTIED,
    },
    "jamba": {
        "attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1, "expert_layer_period": 2,
        "mamba_d_conv": 4, "mamba_d_state": 8, "mamba_expand": 2, "num_experts": 1, "num_experts_per_tok": 1, **UNTIED,
    },
    "granitemoehybrid": {
        "logits_scaling": 4.0, "attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.4,
        "attention_bias": False, "layer_types": ["mamba", "attention", "mamba", "mamba"], "num_local_experts": 4,
        "num_experts_per_tok": 2, "shared_intermediate_size": 48, "mamba_n_heads": 8, "mamba_d_head": 16,
        "mamba_proj_bias": False, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_n_groups": 1, "mamba_conv_bias": True,
        "mamba_expand": 2, "position_embedding_type": "nope", "time_step_limit": LIMIT, **TIED,
    },
    "nemotron_h": {
        "attention_bias": False, "mamba_num_heads": 8, "mamba_head_dim": 16, "mamba_proj_bias": False,
        "ssm_state_size": 16, "conv_kernel": 4, "n_groups": 2, "mlp_bias": False, "layer_norm_epsilon": 1e-5,
        "use_bias": False, "use_conv_bias": True, "hybrid_override_pattern": "M-*M", "head_dim": 16,
        "mlp_hidden_act": "relu2", "time_step_limit": LIMIT, **UNTIED,
    },
    "nemotron_h+moe": {
        "attention_bias": False, "mamba_num_heads": 8, "mamba_head_dim": 16, "mamba_proj_bias": False,
        "ssm_state_size": 16, "conv_kernel": 4, "n_groups": 2, "mlp_bias": False, "layer_norm_epsilon": 1e-5,
        "use_bias": False, "use_conv_bias": True, "hybrid_override_pattern": "ME*M", "head_dim": 16,
        "mlp_hidden_act": "relu2", "time_step_limit": LIMIT, "n_routed_experts": 8, "num_experts_per_tok": 2,
        "moe_intermediate_size": 48, "moe_shared_expert_intermediate_size": 48, "n_shared_experts": 1, "n_group": 1,
        "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.5, **UNTIED,
    },
    "lfm2": {
        "norm_eps": 1e-5, "conv_bias": False, "conv_L_cache": 3, "block_dim": 64, "block_multiple_of": 16,
        "block_ffn_dim_multiplier": 1.0, "block_auto_adjust_ff_dim": True,
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
    },
    "lfm2_moe": {
        "norm_eps": 1e-5, "conv_bias": False, "conv_L_cache": 3, "moe_intermediate_size": 48, "num_experts": 4,
        "num_experts_per_tok": 2, "norm_topk_prob": True, "use_expert_bias": True, "num_dense_layers": 1,
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
    },
    "qwen3_next": {
        "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
        "linear_conv_kernel_dim": 4, "num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 1,
        "shared_expert_intermediate_size": 48, "mlp_only_layers": [], "moe_intermediate_size": 48, "head_dim": 16,
        "partial_rotary_factor": 0.5, "norm_topk_prob": True, **UNTIED,
    },
    "rwkv7": {
        "norm_eps": 1e-5, "head_dim": 64, "a_low_rank_dim": 16, "v_low_rank_dim": 8, "gate_low_rank_dim": 16,
        "decay_low_rank_dim": 16, **UNTIED,
    },
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "stablelm+parallel": {**DENSE["stablelm"], "use_parallel_residual": True, "qk_layernorm": True},
    "gpt_neox+sequential": {**DENSE["gpt_neox"], "use_parallel_residual": False},
    "granitemoehybrid+dense": {
        **RECURRENT["granitemoehybrid"], "num_local_experts": 0, "num_experts_per_tok": 0,
        "shared_intermediate_size": 96,
    },
    "granitemoehybrid+attention": {
        **RECURRENT["granitemoehybrid"], "layer_types": ["attention"] * 4, "position_embedding_type": "rope",
    },
    "falcon_h1+tied": {**RECURRENT["falcon_h1"], "mamba_rms_norm": True, "mamba_n_groups": 1, **TIED},
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {**DENSE, **EXPERTS, **RECURRENT, **VARIANTS}
# ggml's GELU is a table of float16 values, so logits that nearly tie may change places; these seeds have no such ties.
SEEDS = {
    "gemma": 55, "gemma2": 1, "gemma3_text": 11, "phi": 34, "starcoder2": 38, "gpt2": 9, "gpt_neox": 41,
    "gpt_neox+sequential": 44,
}  # fmt: skip


WIDE: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"hidden_size": 256, "moe_intermediate_size": 256, "head_dim": 64, "num_hidden_layers": 2},
    "mamba2": {"hidden_size": 256, "intermediate_size": 512, "num_heads": 8, "head_dim": 64, "num_hidden_layers": 2},
}


def write_family(folder: Path, model_type: str, changes: dict[str, Any], seed: int = 0) -> Path:
    """A tiny model in MLX layout, with random weights that make attention and logits peaked rather than flat."""
    folder.mkdir(parents=True)
    write_tokenizer(folder)
    sizes = {} if "text_config" in changes else SIZES
    config = {"model_type": model_type.partition("+")[0], **sizes, "eos_token_id": 2, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    mx.random.seed(seed)
    network = build(config)
    random = np.random.default_rng(seed)
    weights = {name: draw(name, value, random) for name, value in tree_flatten(network.parameters())}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    return folder


def draw(name: str, value: mx.array, random: np.random.Generator) -> mx.array:
    """Weights by their part: norms around what the model starts them at, matrices by their width."""
    noise = random.standard_normal(value.shape).astype(np.float32)
    if value.ndim > 1 and "norm" not in name and min(value.shape) > 1:
        spread = 0.5 if "embed" in name or "wte" in name or "wpe" in name else 1.6 / np.sqrt(value.shape[-1])
        return mx.array(spread * noise)
    return value.astype(mx.float32) + mx.array(0.2 * noise) if value.ndim else value


def build(config: dict[str, Any]) -> Any:
    sys.modules.setdefault("hf_olmo", types.ModuleType("hf_olmo"))  # mlx-lm imports it for its tokenizer alone
    model_class, arguments = _get_classes(dict(config))
    return model_class(arguments.from_dict(copy.deepcopy(config)))  # some write into what they are given


def mlx_logits(folder: Path, ids: list[int]) -> np.ndarray:
    """What MLX computes from the folder's weights, as they are stored."""
    config = json.loads((folder / "config.json").read_text())
    network = build(config)
    network.update(tree_unflatten(list(mx.load(str(folder / "model.safetensors")).items())))
    network.eval()
    if config["model_type"] == "olmo":  # mlx-lm's takes one token at a time
        cache = make_prompt_cache(network)
        logits = mx.concatenate([network(mx.array([[token]]), cache) for token in ids], axis=1)
    else:
        logits = network(mx.array([ids]))
    return np.array(logits[0].astype(mx.float32))


def assert_same_logits(gguf: Path, expected: np.ndarray, ids: list[int]) -> None:
    """Same most likely token everywhere, and no logit further off than a hundredth of their range."""
    with LlamaRuntime(gguf, n_ctx=512) as runtime:
        found = runtime.logits(ids)
    assert expected.shape == found.shape
    difference = np.abs(found - expected).max() / (expected.max() - expected.min())
    agreement = (found.argmax(-1) == expected.argmax(-1)).mean()
    print(f"agreement {agreement:.4f} difference {difference:.2e}")
    assert agreement == 1.0
    assert difference <= 1e-2


IDS = [int(number) for number in np.random.default_rng(11).integers(3, 320, 200)]


def to_hugging_face(folder: Path, model_type: str, target: Path, dtype: Any = mx.float32, shards: int = 1) -> Path:
    """The same model as `write_family`'s, as it was before mlx-lm's ``sanitize``."""
    shutil.copytree(folder, target)
    config = json.loads((folder / "config.json").read_text())
    stored = {name: np.array(value) for name, value in mx.load(str(folder / "model.safetensors")).items()}
    weights = LAYOUTS.get(model_type, lambda weights, _: weights)(stored, full_config(config))
    arrays = {name: mx.array(np.ascontiguousarray(value)).astype(dtype) for name, value in weights.items()}
    (target / "model.safetensors").unlink()
    index = {}
    for number in range(shards):
        part = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        names = sorted(arrays)[number::shards]
        mx.save_safetensors(str(target / part), {name: arrays[name] for name in names}, {"format": "pt"})
        index.update(dict.fromkeys(names, part))
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return target


def full_config(config: dict[str, Any]) -> dict[str, Any]:
    return {**vars(_get_classes(dict(config))[1].from_dict(dict(config))), **config}


def tensors_of(gguf_file: Path) -> dict[str, tuple[str, np.ndarray]]:
    return {
        tensor.name: (tensor.tensor_type.name, np.array(tensor.data)) for tensor in gguf.GGUFReader(gguf_file).tensors
    }
