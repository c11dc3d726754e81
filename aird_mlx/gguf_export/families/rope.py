"""Rotary positions: the row order that llama.cpp wants, and the factors it reads as tensors."""

from __future__ import annotations

import math

import numpy as np

from aird_mlx.gguf_export.hyperparameters import Hyperparameters, Key, key, require
from aird_mlx.gguf_export.pieces import Operation, reorder

ROPE_FREQUENCIES = "rope_freqs.weight"


def neighbours(heads: int, length: int) -> np.ndarray:
    """The old row of each new one, from half-against-half to neighbouring pairs.

    Args:
        heads: of this matrix (key-value heads for k).
        length: rows in all.

    >>> neighbours(2, 8).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    return np.arange(length).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


def rotated(pattern: str) -> Operation:
    """Reorder the rows of q and k for architectures that rotate neighbouring pairs."""
    return reorder(pattern, lambda h, length: neighbours(length // h.head_dim, length))


def rope_frequency_factors(hyperparameters: Hyperparameters) -> dict[str, np.ndarray]:
    """The divisors of the rope frequencies for llama3 scaling; nothing for any other.

    Returns:
        ``[head_dim / 2]`` float32, 1 for short wavelengths, ``factor`` for long ones, smooth between.

    Source:
        Llama 3.1's ``rope_scaling`` as mlx-lm's ``Llama3RoPE`` computes it; llama.cpp's ``rope_freqs.weight``.
    """
    if hyperparameters.scaling != "llama3":
        return {}
    scaling = hyperparameters.global_rope
    factor = float(scaling["factor"])
    low = float(scaling.get("low_freq_factor", 1.0))
    high = float(scaling.get("high_freq_factor", 4.0))
    context = float(scaling.get("original_max_position_embeddings", 8192))
    exponents = np.arange(0, hyperparameters.head_dim, 2, dtype=np.float64) / hyperparameters.head_dim
    wavelengths = 2 * math.pi * float(scaling.get("rope_theta", 10000.0)) ** exponents
    smooth = (context / wavelengths - low) / (high - low)
    between = 1.0 / ((1.0 - smooth) / factor + smooth)
    factors = np.where(wavelengths < context / high, 1.0, np.where(wavelengths > context / low, factor, between))
    return {ROPE_FREQUENCIES: factors.astype(np.float32)}


def is_longrope(hyperparameters: Hyperparameters) -> bool:
    """Whether long and short factors are tensors of the file."""
    return hyperparameters.scaling in ("longrope", "su")


def longrope_factors(hyperparameters: Hyperparameters) -> dict[str, np.ndarray]:
    """The divisors of the rope frequencies for short and for long contexts.

    llama.cpp takes the long ones as soon as the context it is opened with exceeds the original; MLX always.
    """
    if not is_longrope(hyperparameters):
        return {}
    factors = {}
    for name in ("long", "short"):
        values = hyperparameters.global_rope.get(f"{name}_factor")
        require(values is not None, f"rope scaling {hyperparameters.scaling!r} has no {name}_factor", "it is needed")
        factors[f"rope_factors_{name}.weight"] = np.asarray(values, dtype=np.float32).reshape(-1)
    return factors


def _attention_factor(hyperparameters: Hyperparameters) -> float | None:
    if not is_longrope(hyperparameters):
        return None
    original = int(hyperparameters.global_rope["original_max_position_embeddings"])
    scale = int(hyperparameters.need("max_position_embeddings")) / original
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0


longrope_key: Key = key("rope.scaling.attn_factor", float, _attention_factor)
ROTATED = rotated(r"self_attn\.[qk]_proj\.")
