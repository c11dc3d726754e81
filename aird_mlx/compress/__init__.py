"""One compression alone: prune or quantize a model, and write it as an MLX folder. Nothing is repaired or judged."""

from aird_mlx.compress.prune import NOT_FASTER, calibration_kinds, prune_on_reference, pruned_sizes, write_pruned
from aird_mlx.compress.quantize import check_quantizable, quantize_as, quantized_sizes, write_quantized

__all__ = [
    "NOT_FASTER",
    "calibration_kinds",
    "check_quantizable",
    "prune_on_reference",
    "pruned_sizes",
    "quantize_as",
    "quantized_sizes",
    "write_pruned",
    "write_quantized",
]
