"""The other layout: what mlx-lm's ``sanitize`` was given, made from what it gave.

For the families whose tensors it joins, transposes or folds. Weights are numpy float32 arrays by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

Weights = dict[str, np.ndarray]
NUMBERED = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


def take_apart(weights: Weights, inside: str = "experts", names: dict[str, str] | None = None) -> Weights:
    """``switch_mlp.up_proj`` of all experts to ``experts.0.up_proj``, ``experts.1.up_proj``, ..."""
    result = {}
    for name, value in weights.items():
        found = re.fullmatch(r"(.*)\.switch_mlp\.(\w+)\.weight", name)
        if found is None:
            result[name] = value
            continue
        part = (names or {}).get(found[2], found[2])
        for expert in range(len(value)):
            result[f"{found[1]}.{inside}.{expert}.{part}.weight"] = value[expert]
    return result


def turn_convolutions(weights: Weights) -> Weights:
    """``[channel, kernel, 1]`` to ``[channel, 1, kernel]``."""
    return {
        name: value.swapaxes(1, 2) if re.search(r"conv(1d)?\.weight$", name) else value
        for name, value in weights.items()
    }


def change(pattern: str, values: Callable[[np.ndarray], np.ndarray], weights: Weights) -> Weights:
    return {name: values(value) if re.search(pattern, name) else value for name, value in weights.items()}


def rename(weights: Weights, *pairs: tuple[str, str]) -> Weights:
    result = {}
    for name, value in weights.items():
        for pattern, replacement in pairs:
            name = re.sub(pattern, replacement, name)
        result[name] = value
    return result


def join_gate_and_up(weights: Weights, target: str, down: str, axis: int = -2) -> Weights:
    """Gate and up projections of all experts in one tensor; Granite's names."""
    result = {}
    for name, value in weights.items():
        if ".switch_mlp.gate_proj." in name:
            up = weights[name.replace("gate_proj", "up_proj")]
            result[name.replace("switch_mlp.gate_proj", target)] = np.concatenate([value, up], axis=axis)
        elif ".switch_mlp.up_proj." not in name:
            result[name.replace("switch_mlp.down_proj", down)] = value
    return result


def join_latent(weights: Weights) -> Weights:
    """DeepSeek-V3's expansion of the latent, each head's keys and values one above the other."""
    result = {}
    for name, value in weights.items():
        if ".embed_q." in name:
            values = weights[name.replace("embed_q", "unembed_out")]
            both = np.concatenate([value.swapaxes(1, 2), values], axis=1)
            result[name.replace("embed_q", "kv_b_proj")] = both.reshape(-1, both.shape[-1])
        elif ".unembed_out." not in name:
            result[name] = value
    return result


def interleave_experts(weights: Weights) -> Weights:
    """gpt-oss: gate and up in turns, ``[expert, in, out]``, no ``.weight``."""
    result = {}
    for name, value in weights.items():
        found = re.fullmatch(r"(.*\.experts)\.(gate|up|down)_proj\.(weight|bias)", name)
        if found is None:
            result[name] = value
        elif found[2] == "down":
            down = value.swapaxes(1, 2) if found[3] == "weight" else value
            result[f"{found[1]}.down_proj{'_bias' if found[3] == 'bias' else ''}"] = down
        elif found[2] == "gate":
            up = weights[name.replace("gate_proj", "up_proj")]
            both = np.stack([value, up], axis=2).reshape(len(value), 2 * value.shape[1], *value.shape[2:])
            both = both.swapaxes(1, 2) if found[3] == "weight" else both
            result[f"{found[1]}.gate_up_proj{'_bias' if found[3] == 'bias' else ''}"] = both
    return result


def unfold_falcon(weights: Weights, config: dict[str, Any]) -> Weights:
    """Without the multipliers that MLX puts into the weights of Falcon-H1."""
    inner, state = config["mamba_d_ssm"], config["mamba_n_groups"] * config["mamba_d_state"]
    sizes = (inner, inner, state, state, config["mamba_n_heads"])
    rows = np.repeat(np.float32(config["ssm_multipliers"]), sizes) * np.float32(config["ssm_in_multiplier"])
    factors = {
        r"down_proj\.weight$": config["mlp_multipliers"][1],
        r"gate_proj\.weight$": config["mlp_multipliers"][0],
        r"k_proj\.weight$": config["key_multiplier"] * config["attention_in_multiplier"],
        r"[qv]_proj\.weight$": config["attention_in_multiplier"],
        r"o_proj\.weight$": config["attention_out_multiplier"],
        r"mamba\.out_proj\.weight$": config["ssm_out_multiplier"],
        r"mamba\.in_proj\.weight$": rows[:, None],
        r"lm_head\.weight$": config["lm_head_multiplier"],
        r"embed_tokens\.weight$": config["embedding_multiplier"],
    }
    for pattern, factor in factors.items():
        weights = change(pattern, lambda value, factor=factor: value / np.float32(factor), weights)
    return turn_convolutions(weights)


def transpose_gpt2(weights: Weights) -> Weights:
    renamed = rename(weights, (r"^model\.", ""))
    return change(r"\.(c_attn|c_proj|c_fc)\.weight$", lambda value: value.T, renamed)


LAYOUTS: dict[str, Callable[[Weights, dict[str, Any]], Weights]] = {
    "mixtral": lambda weights, _: take_apart(weights, names=NUMBERED),
    "qwen2_moe": lambda weights, _: take_apart(weights),
    "qwen3_moe": lambda weights, _: take_apart(weights),
    "olmoe": lambda weights, _: take_apart(weights),
    "granitemoe": lambda weights, _: join_gate_and_up(weights, "input_linear", "output_linear"),
    "deepseek": lambda weights, _: take_apart(weights),
    "deepseek_v2": lambda weights, _: take_apart(weights),
    "deepseek_v3": lambda weights, _: take_apart(join_latent(weights)),
    "gpt_oss": lambda weights, _: interleave_experts(weights),
    "ernie4_5_moe": lambda weights, _: take_apart(weights),
    "glm4_moe": lambda weights, _: take_apart(weights),
    "gpt2": lambda weights, _: transpose_gpt2(weights),
    "gpt_neox": lambda weights, _: rename(
        weights, (r"^model\.h\.", "gpt_neox.layers."), (r"^model\.embed_out", "embed_out"), (r"^model\.", "gpt_neox.")
    ),
    "mamba": lambda weights, _: turn_convolutions(weights),
    "falcon_mamba": lambda weights, _: turn_convolutions(weights),
    "mamba2": lambda weights, _: turn_convolutions(weights),
    "falcon_h1": unfold_falcon,
    "jamba": lambda weights, _: turn_convolutions(weights),
    "granitemoehybrid": lambda weights,
    _: turn_convolutions(join_gate_and_up(weights, "input_linear", "output_linear")),
    "nemotron_h": lambda weights, _: turn_convolutions(weights),
    "nemotron_h+moe": lambda weights, _: turn_convolutions(
        take_apart(rename(weights, (r"fc1", "up_proj"), (r"fc2", "down_proj")))
    ),
    "lfm2": lambda weights, _: turn_convolutions(weights),
    "lfm2_moe": lambda weights, _: turn_convolutions(
        rename(
            take_apart(weights, names=NUMBERED),
            *((rf"(feed_forward)\.{long}", rf"\1.{short}") for long, short in NUMBERED.items()),
        )
    ),
    "qwen3_next": lambda weights, _: change(
        r"(?<!linear_attn\.)norm\.weight$", lambda value: value - 1, turn_convolutions(take_apart(weights))
    ),
}  # fmt: skip
