"""How the repair was chosen, what it changed prompt by prompt, and what it is worth without its ingredients."""

from __future__ import annotations

from aird_mlx.report import Report, TriedPlan
from aird_mlx.report_page.markdown import pairs, table
from aird_mlx.report_page.words import (
    blocks,
    by_refusals,
    calibration_words,
    counts_in_words,
    interval,
    number,
    p_value,
    percent,
    plan_words,
    shares_in_words,
)


def repair_section(report: Report) -> list[str]:
    """The rule, why it was chosen, and every plan that was tried."""
    repair = report.repair
    figures = {
        "rule": repair.rule,
        "blocks": blocks(repair.layers),
        "strength": f"{repair.strength:g}",
        "calibration": calibration_words(repair.tokens),
        "rank": "not low-rank" if repair.rank is None else str(repair.rank),
        "sparsity lost": percent(repair.sparsity_lost),
    }
    parts = ["## Repair", pairs(figures)]
    if repair.why:
        parts.append(repair.why)
    if repair.tried:
        parts += [
            f"Tried on the validation prompts{_counts(repair.validated)}, most refusals first; on front: none beats it "
            "in refusals, over-refusals, KL and sparsity lost at once. Foreseen: share whose likeliest next token "
            "opens a refusal; KL and perplexity over the dense model's own answers. Answered: share of answers judged "
            "refusals.",
            table(TRIED_HEADER, [_tried_row(tried, repair.validated) for tried in by_refusals(repair.tried)]),
        ]
    return parts


TRIED_HEADER = ["plan", "harmful", "harmless", "twin", "KL", "perplexity", "sparsity lost", "on front", "answered"]


def _counts(validated: dict[str, int]) -> str:
    counts = counts_in_words(validated)
    return f" ({counts})" if counts else ""


def _tried_row(tried: TriedPlan, validated: dict[str, int]) -> list[str]:
    answered = tried.answered
    return [
        plan_words(tried),
        *shares_in_words(tried.foreseen, validated),
        number(tried.foreseen.kl_to_dense),
        number(tried.foreseen.perplexity),
        percent(tried.sparsity_lost),
        "yes" if tried.on_front else "",
        "" if answered is None else " / ".join(shares_in_words(answered, validated)),
    ]


def changes_section(report: Report) -> list[str]:
    """Refusals gained and lost from the compressed and the dense model to the repaired one."""
    if not report.changes:
        return []
    header = ["prompts", "from", "to", "n", "refused", "gained", "lost", "p"]
    rows = [
        [
            one.kind,
            one.before,
            one.after,
            str(one.change.n),
            f"{percent(one.change.before)} -> {percent(one.change.after)}",
            str(one.change.gained),
            str(one.change.lost),
            p_value(one.change.p_value),
        ]
        for one in report.changes
    ]
    return [
        "## Prompt by prompt",
        "Refusals gained and lost; p by McNemar's exact test, two-sided.",
        table(header, rows),
    ]


def controls_section(report: Report) -> list[str]:
    """The controls, if any were run."""
    if not report.controls:
        return []
    header = ["control", "harmful", "harmless", "twin", "perplexity", "KL", "what is different"]
    rows = [
        [
            one.name,
            *(interval(rate) for rate in (one.refusal.harmful, one.refusal.harmless, one.refusal.twin)),
            number(one.utility.perplexity),
            number(one.utility.kl_to_dense),
            one.meaning,
        ]
        for one in report.controls
    ]
    return ["## Controls", "On the test prompts, beside the repaired stage.", table(header, rows)]
