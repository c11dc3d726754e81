"""Quantization: all modes of `mx.quantize`, an affine kernel that keeps the zeros of pruned weights, and weights set
aside, so that a repair can change what is quantized.
"""

from aird_mlx.quantization.affine import quantize_with_zeros
from aird_mlx.quantization.quantize import MODES, Recipe, check_quantization, plan_modules, quantize_model
from aird_mlx.quantization.stored import QuantizedWeight, load_quantized, restore_modules, set_aside_modules

__all__ = [
    "MODES",
    "QuantizedWeight",
    "Recipe",
    "check_quantization",
    "load_quantized",
    "plan_modules",
    "quantize_model",
    "quantize_with_zeros",
    "restore_modules",
    "set_aside_modules",
]
