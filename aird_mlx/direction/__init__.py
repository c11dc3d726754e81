"""The refusal direction: candidates, selection, and how it compares between two models.

This package does not know where prompts come from or what a refusal says; it is given tokens.
"""

from aird_mlx.direction.bootstrap import MAXIMUM_KL, MINIMUM_INDUCE, Resampled, choose, resample
from aird_mlx.direction.comparison import Comparison, PlaceComparison, compare_directions
from aird_mlx.direction.heat_map import check_image, draw_heat_map
from aird_mlx.direction.interventions import last_logits, last_refusal_log_odds
from aird_mlx.direction.scores import cosine, kl_divergence, refusal_log_odds, refusal_tokens
from aird_mlx.direction.selection import (
    Candidate,
    CandidateScores,
    Direction,
    Measurement,
    load_direction,
    mean_differences,
    measure_direction,
    save_direction,
    score_candidates,
    select_candidate,
)
from aird_mlx.direction.subspace import refusal_subspace

__all__ = [
    "MAXIMUM_KL",
    "MINIMUM_INDUCE",
    "Candidate",
    "CandidateScores",
    "Comparison",
    "Direction",
    "Measurement",
    "PlaceComparison",
    "Resampled",
    "check_image",
    "choose",
    "compare_directions",
    "cosine",
    "draw_heat_map",
    "kl_divergence",
    "last_logits",
    "last_refusal_log_odds",
    "load_direction",
    "mean_differences",
    "measure_direction",
    "refusal_log_odds",
    "refusal_subspace",
    "refusal_tokens",
    "resample",
    "save_direction",
    "score_candidates",
    "select_candidate",
]
