"""A model that lost some of its blocks: its config says so, and mlx-lm builds it again to see whether that says it.

Source: mlx-lm's model files, which tell the kind of a block by lists, patterns, or its number.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from aird_mlx.errors import UsageError
from aird_mlx.model import ChatModel

# The keys of config.json that count the blocks, those that list the numbers of some, and those that count the first.
COUNTS = ("num_hidden_layers", "n_layer", "n_layers")
NUMBERS = ("full_attn_idxs", "mlp_only_layers")
FIRST = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
# What writes to the stream of a MiniCPM is scaled by this over the root of the count.
SCALE_DEPTH = "scale_depth"
# One letter or word per block, whatever the key is called besides.
_PER_BLOCK = ("layer", "block", "pattern")


def describe_fewer(config: dict[str, Any], count: int, kept: Sequence[int]) -> None:
    """Have a config say that of ``count`` blocks some were ``kept``, in its ``text_config`` too.

    >>> config = {"num_hidden_layers": 3, "layer_types": ["a", "b", "c"], "mlp_only_layers": [2]}
    >>> describe_fewer(config, 3, [0, 2]); config
    {'num_hidden_layers': 2, 'layer_types': ['a', 'c'], 'mlp_only_layers': [1]}
    """
    if isinstance(config.get("text_config"), dict):
        describe_fewer(config["text_config"], count, kept)
    for key, value in config.items():
        if key in COUNTS and value == count:
            config[key] = len(kept)
        elif key in NUMBERS and isinstance(value, list):
            config[key] = [kept.index(block) for block in value if block in kept]
        elif key in FIRST and isinstance(value, int):
            config[key] = sum(block < value for block in kept)
        elif any(word in key for word in _PER_BLOCK) and isinstance(value, list | str) and len(value) == count:
            left = [value[block] for block in kept]
            config[key] = "".join(left) if isinstance(value, str) else left
        elif key == SCALE_DEPTH:
            config[key] = value * math.sqrt(len(kept) / count)


def check_described(model: ChatModel, kept: Sequence[int], traits: Sequence[dict[str, Any]]) -> None:
    """Find out whether the config of a model that kept some blocks describes it.

    Args:
        model: read only.
        kept: what its blocks were numbered before.
        traits: `block_traits` of the model when it had all of them.

    Raises:
        UsageError: mlx-lm would build another model of it; the message names the first block that differs.
    """
    arguments = type(model.network.args).from_dict(model.config)
    rebuilt = block_traits(dataclasses.replace(model, network=type(model.network)(arguments), _layouts={}))
    for block, number in enumerate(kept):
        if rebuilt[block] != traits[number]:
            raise UsageError(
                f"prune: block {number} of {model.name} would be of another kind as block {block} of the new model; "
                f"{model.config['model_type']} tells the kind of a block by its number. Use another method, or drop "
                "another share of the blocks."
            )


def block_traits(model: ChatModel) -> list[dict[str, Any]]:
    """What each block is but for its weights and its number: their shapes, its settings, its tables, and its cache."""
    traits = [_traits(block, number) for number, block in enumerate(model.blocks)]
    caches = make_prompt_cache(model.network)
    if len(caches) == len(traits):  # some families have none for blocks that remember nothing
        for own, cache in zip(traits, caches, strict=True):
            own["cache"] = type(cache), getattr(cache, "max_size", None)
    return traits


def _traits(block: nn.Module, number: int) -> dict[str, Any]:
    traits: dict[str, Any] = {path: value.shape for path, value in tree_flatten(block.parameters())}
    for path, module in block.named_modules():
        settings = {name: value for name, value in vars(module).items() if _is_setting(name, value, number)}
        tables = {name: value.tolist() for name, value in module.items() if _is_table(name, value)}
        traits |= {f"{path}:{name}": value for name, value in ({"type": type(module)} | settings | tables).items()}
    return traits


def _is_setting(name: str, value: Any, number: int) -> bool:
    if name in (*COUNTS, SCALE_DEPTH, "_training") or not isinstance(value, bool | int | float | str | None):
        return False
    return isinstance(value, bool) or "layer" not in name or value != number


def _is_table(name: str, value: Any) -> bool:
    return name.startswith("_") and isinstance(value, mx.array)
