"""From a config.json to its row: wrappers with a language part, types that cannot be done, and the context length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aird_mlx.architectures.parts import Architecture
from aird_mlx.architectures.table import TABLE
from aird_mlx.errors import ModelError

# Wrappers whose language part mlx-lm runs: the attribute it is in, and its model type where the config names none.
WRAPPERS: dict[str, tuple[str, str]] = {
    "mistral3": ("language_model", "llama"),
    "llava": ("language_model", "llama"),
    "pixtral": ("language_model", "llama"),
    "gemma3": ("language_model", "gemma3_text"),
    "qwen2_vl": ("language_model", "qwen2"),
    "qwen2_5_vl": ("language_model", "qwen2"),
    "qwen3_vl": ("language_model", "qwen3"),
    "qwen3_vl_moe": ("language_model", "qwen3_moe"),
}

# Model types that mlx-lm runs and that cannot be done, and why.
REFUSED: dict[str, str] = {
    "olmo": "mlx-lm's file for it runs no prompt: it adds its mask, by now the word causal, to the scores",
    "gemma3n": "four residual streams mixed by AltUp: what a block changes is no sum of its writers",
    "deepseek_v41": "several residual streams mixed between blocks",
    "kimi_k3": "attention over the outputs of earlier blocks takes the place of the residual stream",
    "gemma4": "later blocks read the keys and values of earlier ones, and a scale multiplies the whole stream",
    "hunyuan": "blocks hand keys and values to the next one beside the hidden states",
}


def architecture_of(config: Mapping[str, Any]) -> Architecture | None:
    """The row for a config; of a vision-language wrapper, that of its language part. None where there is none.

    >>> architecture_of({"model_type": "qwen2"}).blocks
    'model.layers'
    >>> architecture_of({"model_type": "mistral3", "text_config": {"model_type": "ministral3"}}).blocks
    'language_model.model.layers'
    """
    model_type = config["model_type"]
    if model_type in WRAPPERS:
        owner, default = WRAPPERS[model_type]
        inner = (config.get("text_config") or {}).get("model_type", default)
        row = TABLE.get(inner, TABLE.get(default))
        return row.inside(owner) if row else None
    return TABLE.get(model_type)


def blocks_path(config: Mapping[str, Any]) -> str:
    """Where the blocks of a config's model are, as names of its weights begin.

    Raises:
        ModelError: its model type has no row.
    """
    row = architecture_of(config)
    if row is None:
        raise ModelError(
            f"model: model type {config['model_type']!r} has no row in the table of architectures; its patch cannot be "
            "told from names alone. Use the repaired model itself."
        )
    return row.blocks


# The keys of config.json that name the most tokens a model was made for.
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length")


def quantization_of(config: Mapping[str, Any]) -> Any:
    """How the weights are quantized, None if they are not: mlx-lm reads the first place, the hub shows the second."""
    return config.get("quantization") or config.get("quantization_config")


def context_length(config: Mapping[str, Any]) -> int | None:
    """Most tokens of prompt and answer together, None if the config names no limit; some nest it in ``text_config``."""
    for where in (config, config.get("text_config") or {}):
        for key in CONTEXT_KEYS:
            if isinstance(where.get(key), int):
                return int(where[key])
    return None
