"""Evaluation: answers judged under attacks, utility on held-out tokens and tasks, rates with intervals."""

from aird_mlx.evaluation.attacks import ATTACKS, Attack, plan_attacks
from aird_mlx.evaluation.chat import MlxChat
from aird_mlx.evaluation.generation import BATCH_SIZE, decode, generate_answers
from aird_mlx.evaluation.judge import COMPLIANCE, INCOHERENT, REFUSAL, judge_answer
from aird_mlx.evaluation.judge_model import ModelJudge, judge_figures
from aird_mlx.evaluation.multiple_choice import answer_questions, read_questions
from aird_mlx.evaluation.paired import check_comparable, compare_sets, read_evaluation
from aird_mlx.evaluation.refusals import judge_prompts, measure_refusals, refusal_rates
from aird_mlx.evaluation.statistics import answer_rates, paired_change, wilson_rate, worst_class
from aird_mlx.evaluation.tasks import check_tasks_available, run_tasks
from aird_mlx.evaluation.text import cut_windows, read_text
from aird_mlx.evaluation.utility import measure_utility, perplexity, utility_batch_tokens

__all__ = [
    "ATTACKS",
    "BATCH_SIZE",
    "COMPLIANCE",
    "INCOHERENT",
    "REFUSAL",
    "Attack",
    "MlxChat",
    "ModelJudge",
    "answer_questions",
    "answer_rates",
    "check_comparable",
    "check_tasks_available",
    "compare_sets",
    "cut_windows",
    "decode",
    "generate_answers",
    "judge_answer",
    "judge_figures",
    "judge_prompts",
    "measure_refusals",
    "measure_utility",
    "paired_change",
    "perplexity",
    "plan_attacks",
    "read_evaluation",
    "read_questions",
    "read_text",
    "refusal_rates",
    "run_tasks",
    "utility_batch_tokens",
    "wilson_rate",
    "worst_class",
]
