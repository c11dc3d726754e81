"""Quantization: all modes of `mx.quantize`; an affine kernel that keeps the zeros of pruned weights; mlx-lm's learned
methods called; more bits for what writes the refusal direction.
"""

from aird_mlx.quantization.affine import quantize_with_zeros
from aird_mlx.quantization.learned import LEARNED, check_learned, learn_quantization
from aird_mlx.quantization.quantize import MODES, Recipe, check_quantization, quantize_model
from aird_mlx.quantization.refusal import favour_writers

__all__ = [
    "LEARNED",
    "MODES",
    "Recipe",
    "check_learned",
    "check_quantization",
    "favour_writers",
    "learn_quantization",
    "quantize_model",
    "quantize_with_zeros",
]
