"""What a model's config says, in the words GGUF has for it.

Reads ``config.json`` (and its neighbours) into `Hyperparameters` and writes those as GGUF keys. Knows the four
dense families llama, mistral, qwen2 and qwen3, and the rope scalings that llama.cpp computes exactly as MLX does;
anything else is refused here, before a byte is written. Knows nothing about tokenizers or weights.
Source: llama.cpp's ``conversion/`` package and ``src/llama-model.cpp``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from aird_mlx.errors import ExportError, ModelError

# model_type of config.json -> architecture of llama.cpp
FAMILIES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
DEFAULT_THETA = {"llama": 10000.0, "mistral": 10000.0, "qwen2": 1000000.0, "qwen3": 1000000.0}
QUANTIZATION_VERSION = 2


@dataclass(frozen=True)
class Hyperparameters:
    """The shape of a model and how it turns positions into angles.

    Attributes:
        model_type: as in ``config.json``: llama, mistral, qwen2 or qwen3.
        architecture: llama.cpp's word for it.
        head_dim: of one attention head; not always ``hidden / heads``.
        context_length: tokens, from ``max_position_embeddings``.
        rope_scaling: None, or a dict whose ``rope_type`` is linear, llama3 or yarn.
        tied: whether the output matrix is the embedding; None where the config does not say.
    """

    model_type: str
    architecture: str
    blocks: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    context_length: int
    norm_epsilon: float
    rope_theta: float
    rope_scaling: dict[str, Any] | None
    sliding_window: int | None
    tied: bool | None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``, or ``{}`` if there is no such file.

    Raises:
        ModelError: the file is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError, OSError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ModelError(f"model: {path} cannot be read ({error}); JSON is needed. Copy the file again.") from error
    if not isinstance(content, dict):
        raise ModelError(
            f"model: {path} holds a {type(content).__name__}; a JSON object is needed. Copy the file again."
        )
    return content


def read_hyperparameters(config: Mapping[str, Any]) -> Hyperparameters:
    """Take from a ``config.json`` what llama.cpp must know.

    Args:
        config: the parsed file, of an MLX or Hugging Face folder.

    Raises:
        ExportError: the model type, the rope scaling or the activation has no equal in this export.
        ModelError: a required number is missing, or is none.

    >>> config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128,
    ...           "num_attention_heads": 4, "rms_norm_eps": 1e-5, "max_position_embeddings": 512}
    >>> read_hyperparameters(config).head_dim
    16
    """
    model_type = str(config.get("model_type"))
    if model_type not in FAMILIES:
        raise ExportError(
            f"gguf: model_type {model_type!r}; one of {', '.join(FAMILIES)} is needed. "
            "Use llama.cpp's convert_hf_to_gguf.py for this model."
        )
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise ExportError(
            f"gguf: hidden_act {activation!r}; llama.cpp computes {model_type} with silu. "
            "Use llama.cpp's convert_hf_to_gguf.py for this model."
        )
    try:
        return _read_numbers(config, model_type)
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise ModelError(
            f"model: config.json has a value that is not what its key means ({error}); numbers, and objects for the "
            "rope settings, are needed. Use the config of these weights."
        ) from error


def _read_numbers(config: Mapping[str, Any], model_type: str) -> Hyperparameters:
    heads = int(_required(config, "num_attention_heads"))
    hidden = int(_required(config, "hidden_size"))
    scaling, theta = _read_rope(config, model_type)
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    return Hyperparameters(
        model_type=model_type,
        architecture=FAMILIES[model_type],
        blocks=int(_required(config, "num_hidden_layers")),
        hidden=hidden,
        intermediate=int(_required(config, "intermediate_size")),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        context_length=int(config.get("max_position_embeddings") or 2048),
        norm_epsilon=float(_required(config, "rms_norm_eps")),
        rope_theta=theta,
        rope_scaling=scaling,
        sliding_window=int(window) if window else None,
        tied=config.get("tie_word_embeddings"),
    )


def find_limits(config: Mapping[str, Any], hyperparameters: Hyperparameters) -> list[str]:
    """What llama.cpp will do differently from MLX with this model, one sentence each.

    llama.cpp has no sliding window for these four architectures: attention is full at any length.
    """
    window = hyperparameters.sliding_window
    if window is None or "sliding_attention" not in (config.get("layer_types") or []):
        return []  # without layer_types MLX attends to everything too
    return [f"attention is full in llama.cpp; the config has a sliding window of {window} tokens: equal up to there"]


def rope_frequency_factors(hyperparameters: Hyperparameters) -> np.ndarray | None:
    """The divisors of the rope frequencies for llama3 scaling, None for any other.

    Returns:
        ``[head_dim / 2]`` float32, 1 for short wavelengths, ``factor`` for long ones, smooth between.

    Source:
        Llama 3.1's ``rope_scaling`` as mlx-lm's ``Llama3RoPE`` computes it; llama.cpp's ``rope_freqs.weight``.
    """
    scaling = hyperparameters.rope_scaling
    if scaling is None or scaling["rope_type"] != "llama3":
        return None
    factor = float(scaling["factor"])
    low = float(scaling.get("low_freq_factor", 1.0))
    high = float(scaling.get("high_freq_factor", 4.0))
    context = float(scaling.get("original_max_position_embeddings", 8192))
    exponents = np.arange(0, hyperparameters.head_dim, 2, dtype=np.float64) / hyperparameters.head_dim
    wavelengths = 2 * math.pi * hyperparameters.rope_theta**exponents
    smooth = (context / wavelengths - low) / (high - low)
    between = 1.0 / ((1.0 - smooth) / factor + smooth)
    factors = np.where(wavelengths < context / high, 1.0, np.where(wavelengths > context / low, factor, between))
    return factors.astype(np.float32)


def read_licence(folder: Path) -> str | None:
    """The ``license:`` of the model card's front matter, if the folder has one."""
    try:
        card = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    front = re.match(r"---\s*\n(.*?)\n---", card, re.DOTALL)
    found = re.search(r"^license:\s*['\"]?([\w.\-]+)", front.group(1), re.MULTILINE) if front else None
    return found.group(1) if found else None


def add_hyperparameters(writer: gguf.GGUFWriter, hyperparameters: Hyperparameters, vocab_size: int) -> None:
    """Write the architecture's keys; ``writer`` must have been made for the same architecture."""
    writer.add_context_length(hyperparameters.context_length)
    writer.add_embedding_length(hyperparameters.hidden)
    writer.add_block_count(hyperparameters.blocks)
    writer.add_feed_forward_length(hyperparameters.intermediate)
    writer.add_head_count(hyperparameters.heads)
    writer.add_head_count_kv(hyperparameters.kv_heads)
    writer.add_key_length(hyperparameters.head_dim)
    writer.add_value_length(hyperparameters.head_dim)
    writer.add_layer_norm_rms_eps(hyperparameters.norm_epsilon)
    writer.add_rope_dimension_count(hyperparameters.head_dim)
    writer.add_rope_freq_base(hyperparameters.rope_theta)
    writer.add_vocab_size(vocab_size)
    if hyperparameters.sliding_window is not None:
        writer.add_sliding_window(hyperparameters.sliding_window)
    scaling = hyperparameters.rope_scaling
    if scaling is None or scaling["rope_type"] == "llama3":  # llama3 is a tensor, not a key
        return
    if scaling["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(scaling["factor"]))
        return
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(float(scaling["factor"]))
    writer.add_rope_scaling_orig_ctx_len(int(scaling["original_max_position_embeddings"]))
    writer.add_rope_scaling_yarn_beta_fast(float(scaling.get("beta_fast") or 32.0))
    writer.add_rope_scaling_yarn_beta_slow(float(scaling.get("beta_slow") or 1.0))


def _required(config: Mapping[str, Any], key: str) -> Any:
    if config.get(key) is None:
        raise ModelError(f"model: config.json has no {key}; the export needs it. Use a complete model folder.")
    return config[key]


def _read_rope(config: Mapping[str, Any], model_type: str) -> tuple[dict[str, Any] | None, float]:
    """Scaling (None for plain rope) and base; newer configs keep both under ``rope_parameters``."""
    parameters = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = float(parameters.pop("rope_theta", None) or config.get("rope_theta") or DEFAULT_THETA[model_type])
    kind = str(parameters.get("rope_type") or parameters.get("type") or "default").lower()
    if config.get("rope_traditional") or config.get("rope_interleaved"):
        raise ExportError(
            "gguf: rope_traditional is true; llama.cpp's converter order assumes the split-half form. "
            "Export a model with rope_traditional false."
        )
    if float(parameters.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ExportError(
            f"gguf: partial_rotary_factor {parameters['partial_rotary_factor']}; only 1.0 can be exported for "
            f"{model_type}. Use llama.cpp's convert_hf_to_gguf.py for this model."
        )
    if kind == "default":
        return None, theta
    if kind not in ("linear", "llama3", "yarn"):
        raise ExportError(
            f"gguf: rope scaling {kind!r}; default, linear, llama3 or yarn is needed. "
            "Use llama.cpp's convert_hf_to_gguf.py for this model."
        )
    if kind == "llama3" and FAMILIES[model_type] != "llama":
        raise ExportError(
            f"gguf: rope scaling 'llama3' on {model_type}; llama.cpp reads its factors only for llama. "
            "Export a model with default, linear or yarn scaling."
        )
    needed = ["factor"] + (["original_max_position_embeddings"] if kind == "yarn" else [])
    for key in needed:
        if parameters.get(key) is None:
            raise ModelError(
                f"model: rope scaling {kind!r} has no {key}; the export needs it. Use a complete config.json."
            )
    # MLX reads only these of yarn; a config that changes the others would run differently in llama.cpp.
    usual = {"attention_factor": (None,), "mscale": (None, 1), "mscale_all_dim": (None, 0)}
    changed = [key for key, values in usual.items() if parameters.get(key) not in values]
    if kind == "yarn" and (changed or parameters.get("truncate") is False):
        raise ExportError(
            f"gguf: yarn scaling sets {', '.join(changed) or 'truncate'}; only factor, "
            "original_max_position_embeddings, beta_fast and beta_slow can be exported. "
            "Use llama.cpp's convert_hf_to_gguf.py for this model."
        )
    return {**parameters, "rope_type": kind}, theta
