"""Quantization: all modes of `mx.quantize`, and an affine kernel that keeps the zeros of pruned weights."""

from aird_mlx.quantization.affine import quantize_with_zeros
from aird_mlx.quantization.quantize import MODES, Recipe, check_quantization, quantize_model

__all__ = ["MODES", "Recipe", "check_quantization", "quantize_model", "quantize_with_zeros"]
