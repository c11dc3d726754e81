"""Pruning: masks are kernels, `prune_model` drives them block by block."""

from aird_mlx.pruning.allocation import ALLOCATIONS, Allocation, spread_sparsities
from aird_mlx.pruning.masks import (
    SCOPES,
    lowest_mask,
    magnitude_scores,
    n_of_m_mask,
    parse_pattern,
    random_scores,
    wanda_scores,
)
from aird_mlx.pruning.prune import METHODS, check_pruning, check_words, prune_model
from aird_mlx.pruning.sparsegpt import Sparsified, sparsify_weight

__all__ = [
    "ALLOCATIONS",
    "METHODS",
    "SCOPES",
    "Allocation",
    "Sparsified",
    "check_pruning",
    "check_words",
    "lowest_mask",
    "magnitude_scores",
    "n_of_m_mask",
    "parse_pattern",
    "prune_model",
    "random_scores",
    "sparsify_weight",
    "spread_sparsities",
    "wanda_scores",
]
