"""The table: model type -> where its blocks are, what reads the residual stream, and what writes to it.

Names only: this package imports no model. What a row claims is proven on the running model by `check_writers`, and
model types without a row are probed by `discover` (both in ``aird_mlx.model``).
"""

from aird_mlx.architectures.lookup import (
    REFUSED,
    WRAPPERS,
    architecture_of,
    blocks_path,
    context_length,
    quantization_of,
)
from aird_mlx.architectures.parts import Architecture, Experts, Layout, Part
from aird_mlx.architectures.table import TABLE

__all__ = [
    "REFUSED",
    "TABLE",
    "WRAPPERS",
    "Architecture",
    "Experts",
    "Layout",
    "Part",
    "architecture_of",
    "blocks_path",
    "context_length",
    "quantization_of",
]
