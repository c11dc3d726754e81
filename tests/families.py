"""Configs of tiny models, one per model type of mlx-lm: four blocks, width 32, every kind of block among them."""

from __future__ import annotations

from typing import Any

BASE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "layer_norm_eps": 1e-5,
    "norm_eps": 1e-5,
    "vocab_size": 320,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}
SLIDING = {"layer_types": ["full_attention", "sliding_attention"] * 2, "sliding_window": 6}
GRANITE = {
    "logits_scaling": 2.0,
    "attention_multiplier": 0.3,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}
DEEPSEEK = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.5,
    "norm_topk_prob": True,
}
MLA = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
MAMBA2 = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_n_groups": 1,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
}
TEXT = BASE | {"model_type": "ministral3"}
ROPE = {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "llama_4_scaling_beta": 0.1,
        "original_max_position_embeddings": 256,
    }
}

# What each model type's config has beside BASE.
CHANGES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": SLIDING,
    "ministral3": ROPE | SLIDING,
    "mistral3": {"text_config": TEXT | ROPE, "vision_config": {}},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 8},
    "gemma3_text": {"query_pre_attn_scalar": 8, "sliding_window": 6, "sliding_window_pattern": 2},
    "ernie4_5": {"use_bias": False},
    "hunyuan_v1_dense": {"use_qk_norm": True},
    "mimo": {"num_nextn_predict_layers": 0},
    "glm": {"partial_rotary_factor": 0.5},
    "internlm2": {"bias": False},
    "phi": {"partial_rotary_factor": 0.5},
    "phi3": {},
    "olmo2": {},
    "olmo3": SLIDING,
    "smollm3": {},
    "stablelm": {"use_qkv_bias": True, "partial_rotary_factor": 0.5},
    "starcoder2": {"norm_epsilon": 1e-5},
    "gpt2": {
        "n_ctx": 256,
        "n_embd": 32,
        "n_head": 4,
        "n_layer": 4,
        "n_positions": 256,
        "layer_norm_epsilon": 1e-5,
        "num_key_value_heads": 4,
    },
    "gpt_neox": {"rotary_emb_base": 10000, "rotary_pct": 0.5, "num_key_value_heads": 4},
    "cohere": {"use_qk_norm": True},
    "cohere2": {"sliding_window": 6, "sliding_window_pattern": 2},
    "granite": GRANITE,
    "exaone4": {"rope_scaling": None, "sliding_window": 6, "sliding_window_pattern": "LG"},
    "internlm3": {},
    "glm4": {"partial_rotary_factor": 0.5},
    "minicpm": {"dim_model_base": 16, "scale_depth": 1.4, "scale_emb": 3.0},
    "helium": {},
    "seed_oss": {},
    "nemotron": {"hidden_act": "relu2"},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": MOE | {"shared_expert_intermediate_size": 24},
    "qwen3_moe": MOE | {"decoder_sparse_step": 1, "mlp_only_layers": [1]},
    "olmoe": MOE,
    "phimoe": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_scaling": {"short_factor": [1.0] * 4, "long_factor": [1.0] * 4, "long_mscale": 1.0, "short_mscale": 1.0},
    },
    "granitemoe": GRANITE | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek": DEEPSEEK,
    "deepseek_v3": DEEPSEEK | MLA | {"rope_scaling": None},
    "deepseek_v2": DEEPSEEK
    | MLA
    | {
        "topk_method": "greedy",
        "rope_scaling": {"type": "yarn", "factor": 1.0, "original_max_position_embeddings": 256, "mscale_all_dim": 0},
    },
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6, "layer_types": None},
    "ernie4_5_moe": {
        "use_bias": False,
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 24,
        "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1,
    },
    "glm4_moe": DEEPSEEK | {"use_qk_norm": True, "rope_scaling": None, "partial_rotary_factor": 0.5},
    "mamba": {
        "state_size": 8,
        "conv_kernel": 4,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_rank": 4,
    },
    "mamba2": {
        "num_heads": 4,
        "head_dim": 16,
        "state_size": 8,
        "conv_kernel": 4,
        "n_groups": 1,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_limit": [0.0, 100.0],
        "time_step_rank": "auto",
        "layer_norm_epsilon": 1e-5,
    },
    "falcon_h1": MAMBA2 | {"mamba_d_ssm": 64, "num_attention_heads": 4},
    "jamba": {
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_d_conv": 4,
        "mamba_d_state": 8,
        "mamba_expand": 2,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "nemotron_h": {
        "hybrid_override_pattern": "M*-E",
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "mamba_proj_bias": False,
        "ssm_state_size": 8,
        "conv_kernel": 4,
        "n_groups": 1,
        "layer_norm_epsilon": 1e-5,
        "use_bias": False,
        "use_conv_bias": True,
        "moe_intermediate_size": 24,
        "moe_shared_expert_intermediate_size": 24,
        "n_group": 1,
        "topk_group": 1,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.5,
        "time_step_limit": [0.0, 100.0],
    },
    "granitemoehybrid": GRANITE
    | MAMBA2
    | {
        "layer_types": ["mamba", "attention"] * 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 24,
    },
    "lfm2": {
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": 32,
        "block_multiple_of": 8,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "block_ff_dim": 64,
        "full_attn_idxs": [1, 3],
    },
    "lfm2_moe": MOE
    | {
        "use_expert_bias": True,
        "num_dense_layers": 1,
        "conv_bias": False,
        "conv_L_cache": 3,
        "full_attn_idxs": [1, 3],
    },
    "qwen3_next": MOE
    | {
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_conv_kernel_dim": 4,
        "decoder_sparse_step": 1,
        "shared_expert_intermediate_size": 24,
        "mlp_only_layers": [1],
        "partial_rotary_factor": 0.5,
        "full_attention_interval": 2,
    },
    "recurrent_gemma": {
        "conv1d_width": 4,
        "logits_soft_cap": 30.0,
        "num_key_value_heads": 1,
        "attention_window_size": 64,
        "block_types": ["recurrent", "recurrent", "attention"],
    },
    "rwkv7": {
        "a_low_rank_dim": 4,
        "v_low_rank_dim": 4,
        "gate_low_rank_dim": 4,
        "decay_low_rank_dim": 4,
        "tie_word_embeddings": False,
    },
}


def tiny_config(model_type: str) -> dict[str, Any]:
    """The whole config of a tiny model."""
    return BASE | {"model_type": model_type} | CHANGES[model_type]
