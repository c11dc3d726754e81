"""Pruning: masks are kernels, `prune_model` drives them block by block."""

from aird_mlx.pruning.masks import lowest_mask, magnitude_scores, n_of_m_mask, parse_pattern, wanda_scores
from aird_mlx.pruning.prune import METHODS, PruningResult, check_pruning, prune_model

__all__ = [
    "METHODS",
    "PruningResult",
    "check_pruning",
    "lowest_mask",
    "magnitude_scores",
    "n_of_m_mask",
    "parse_pattern",
    "prune_model",
    "wanda_scores",
]
