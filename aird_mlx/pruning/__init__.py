"""Pruning: masks are kernels, `prune_model` drives them block by block."""

from aird_mlx.pruning.allocation import (
    ALLOCATIONS,
    Allocation,
    allocate_sparsity,
    outlier_share,
    spread_sparsities,
    whole_rows,
)
from aird_mlx.pruning.checks import CALIBRATED, METHODS, check_pruning, check_words
from aird_mlx.pruning.dropping import drop_blocks, measure_influence
from aird_mlx.pruning.masks import (
    SCOPES,
    lowest_mask,
    magnitude_scores,
    n_of_m_mask,
    parse_pattern,
    random_scores,
    wanda_scores,
)
from aird_mlx.pruning.prune import prune_model
from aird_mlx.pruning.reap import expert_worth, least_experts, remove_experts
from aird_mlx.pruning.sparsegpt import Sparsified, sparsify_weight

__all__ = [
    "ALLOCATIONS",
    "CALIBRATED",
    "METHODS",
    "SCOPES",
    "Allocation",
    "Sparsified",
    "allocate_sparsity",
    "check_pruning",
    "check_words",
    "drop_blocks",
    "expert_worth",
    "least_experts",
    "lowest_mask",
    "magnitude_scores",
    "measure_influence",
    "n_of_m_mask",
    "outlier_share",
    "parse_pattern",
    "prune_model",
    "random_scores",
    "remove_experts",
    "sparsify_weight",
    "spread_sparsities",
    "wanda_scores",
    "whole_rows",
]
