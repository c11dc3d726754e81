"""Choosing a repair on validation prompts: where plans come from, how they are judged, which one is kept."""

from aird_mlx.search.choose import Choice, choose_repair
from aird_mlx.search.spaces import PlanSpace, spaces_for
from aird_mlx.search.trial import Trial, pareto_front, tried_plans
from aird_mlx.search.validation import Validation

__all__ = [
    "Choice",
    "PlanSpace",
    "Trial",
    "Validation",
    "choose_repair",
    "pareto_front",
    "spaces_for",
    "tried_plans",
]
