"""The table of the families that llama.cpp runs as MLX does: dense, with experts, recurrent and hybrid.

A row (`family.Family`) is what `mlx_lm`'s model type needs beyond what all share. Families that are in no table are
refused by name; those in `REFUSED` with the reason. Source: ``conversion/`` and ``src/models`` of llama.cpp, and
``mlx_lm/models``; each row is checked by ``tests/test_gguf_parity.py``, logits against logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aird_mlx.errors import ExportError
from aird_mlx.gguf_export.families.delta import DELTA
from aird_mlx.gguf_export.families.dense import DENSE
from aird_mlx.gguf_export.families.experts import WITH_EXPERTS
from aird_mlx.gguf_export.families.family import Family
from aird_mlx.gguf_export.families.hybrid import HYBRID
from aird_mlx.gguf_export.families.joined import JOINED
from aird_mlx.gguf_export.families.latent import LATENT_ROWS
from aird_mlx.gguf_export.families.mamba import STATE_SPACE
from aird_mlx.gguf_export.families.refused import REFUSED
from aird_mlx.gguf_export.families.rwkv import RECURRENT_NETWORK
from aird_mlx.gguf_export.hyperparameters import Hyperparameters, merge_config, require

__all__ = ["FAMILIES", "Family", "exportable_families", "find_family", "read_hyperparameters", "refused_families"]

FAMILIES: dict[str, Family] = {
    **DENSE,
    **JOINED,
    **WITH_EXPERTS,
    **LATENT_ROWS,
    **STATE_SPACE,
    **HYBRID,
    **DELTA,
    **RECURRENT_NETWORK,
}


def exportable_families() -> tuple[str, ...]:
    """The model types of ``config.json`` that can be exported, in alphabetical order.

    >>> "gemma2" in exportable_families()
    True
    """
    return tuple(sorted(FAMILIES))


def refused_families() -> Mapping[str, str]:
    """Model types that mlx-lm runs and that cannot be exported: what llama.cpp lacks or computes differently."""
    return REFUSED


def find_family(model_type: str) -> Family:
    """The row of a model type.

    Raises:
        ExportError: there is none.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    reason = REFUSED.get(model_type)
    if reason is not None:
        raise ExportError(f"gguf: model_type {model_type!r}; {reason}. Run this model in MLX.")
    raise ExportError(
        f"gguf: model_type {model_type!r}; one of {', '.join(exportable_families())} is needed. "
        "Use llama.cpp's convert_hf_to_gguf.py for this model."
    )


def read_hyperparameters(config: Mapping[str, Any]) -> tuple[Family, Hyperparameters]:
    """The row of a config, and what the config says; refuses what has no equal in llama.cpp.

    Args:
        config: the parsed ``config.json`` of an MLX or Hugging Face folder.

    Raises:
        ExportError: the model type, the rope scaling or the activation has no equal in this export.
        ModelError: a required number is missing.

    >>> config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128,
    ...           "num_attention_heads": 4, "rms_norm_eps": 1e-5, "max_position_embeddings": 512}
    >>> read_hyperparameters(config)[1].head_dim
    16
    """
    model_type = _model_type(config)
    family = find_family(model_type)
    merged, given = merge_config(config)
    architecture = family.architecture if isinstance(family.architecture, str) else family.architecture(merged)
    hyperparameters = Hyperparameters(merged, given, model_type, architecture)
    _check(family, hyperparameters)
    return family, hyperparameters


def _model_type(config: Mapping[str, Any]) -> str:
    """Of the language model, where the config describes a larger one."""
    outer = str(config.get("model_type"))
    inner = config.get("text_config")
    if outer in FAMILIES or not isinstance(inner, Mapping) or inner.get("model_type") not in FAMILIES:
        return outer
    return str(inner["model_type"])


def _check(family: Family, hyperparameters: Hyperparameters) -> None:
    activation = hyperparameters.get("hidden_act", "hidden_activation", "activation_function", "mlp_hidden_act")
    if family.activations is not None and activation is not None:
        require(
            activation in family.activations,
            f"hidden_act {activation!r}",
            f"llama.cpp computes {hyperparameters.model_type} with {family.activations[0]}",
        )
    hyperparameters.need("num_hidden_layers", "n_layers", "n_layer", "num_layers")
    require(
        hyperparameters.scaling in family.scalings,
        f"rope scaling {hyperparameters.scaling!r} on {hyperparameters.model_type}",
        f"{', '.join(family.scalings)} is what MLX and llama.cpp compute alike there",
    )
    for check in family.checks:
        check(hyperparameters)
