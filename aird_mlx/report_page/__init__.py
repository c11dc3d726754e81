"""Results for people: figures in words, and the report of a run as a Markdown page."""

from aird_mlx.report_page.card import to_model_card, write_front_matter
from aird_mlx.report_page.page import headline, reach_in_words, read_report, to_markdown
from aird_mlx.report_page.words import (
    blocks,
    by_refusals,
    calibration_words,
    counts_in_words,
    interval,
    judged_on,
    number,
    p_value,
    percent,
    percent_number,
    plan_words,
    sample_sizes,
    shares_in_words,
)

__all__ = [
    "blocks",
    "by_refusals",
    "calibration_words",
    "counts_in_words",
    "headline",
    "interval",
    "judged_on",
    "number",
    "p_value",
    "percent",
    "percent_number",
    "plan_words",
    "reach_in_words",
    "read_report",
    "sample_sizes",
    "shares_in_words",
    "to_markdown",
    "to_model_card",
    "write_front_matter",
]
