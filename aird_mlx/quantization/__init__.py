"""Quantization: all modes of `mx.quantize`; an affine kernel that keeps the zeros of pruned weights; mlx-lm's learned
methods called; more bits for what writes the refusal direction; and weights set aside, so that a repair can change
what is quantized.
"""

from aird_mlx.quantization.affine import quantize_with_zeros
from aird_mlx.quantization.learned import LEARNED, check_learned, learn_quantization
from aird_mlx.quantization.quantize import MODES, Recipe, check_quantization, plan_modules, quantize_model
from aird_mlx.quantization.refusal import favour_writers
from aird_mlx.quantization.stored import QuantizedWeight, load_quantized, restore_modules, set_aside_modules

__all__ = [
    "LEARNED",
    "MODES",
    "QuantizedWeight",
    "Recipe",
    "check_learned",
    "check_quantization",
    "favour_writers",
    "learn_quantization",
    "load_quantized",
    "plan_modules",
    "quantize_model",
    "quantize_with_zeros",
    "restore_modules",
    "set_aside_modules",
]
