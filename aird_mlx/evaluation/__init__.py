"""Evaluation: refusals judged on generated answers, utility on held-out tokens, rates with intervals."""

from aird_mlx.evaluation.generation import decode, generate_answers
from aird_mlx.evaluation.judge import COMPLIANCE, INCOHERENT, REFUSAL, judge_answer
from aird_mlx.evaluation.refusals import measure_refusals, refusal_rates
from aird_mlx.evaluation.statistics import wilson_rate
from aird_mlx.evaluation.utility import measure_utility, utility_batch_tokens

__all__ = [
    "COMPLIANCE",
    "INCOHERENT",
    "REFUSAL",
    "decode",
    "generate_answers",
    "judge_answer",
    "measure_refusals",
    "measure_utility",
    "refusal_rates",
    "utility_batch_tokens",
    "wilson_rate",
]
