"""A report as a page: read back from the folder of a run, written as Markdown.

The page holds the same figures as ``report.json``, for people. Plain string building: this module knows
nothing of terminals, models or how the figures came about.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aird_mlx.report import DirectionFigures, Gate, Report, Stage, read_result
from aird_mlx.report_page.markdown import bullets, pairs, table
from aird_mlx.report_page.search import changes_section, controls_section, repair_section
from aird_mlx.report_page.words import counts_in_words, interval, judged_on, number, percent, sample_sizes


def read_report(folder: Path) -> Report:
    """Read the report that `aird-mlx repair` left in ``folder``.

    Args:
        folder: output folder of a run, or the path of a ``report.json``.

    Returns:
        The report as it was written.

    Raises:
        AirdError: there is no ``report.json``, or it is not one.
    """
    path = folder if folder.suffix == ".json" else folder / "report.json"
    needed = (
        "the output folder of a finished `aird-mlx repair` is needed. "
        "Check the path, or continue that run with --resume."
    )
    return read_result(Report, path, stage="report", needed=needed)


def to_markdown(report: Report) -> str:
    """Write a report as one Markdown page.

    Args:
        report: what a run measured.

    Returns:
        The page, ending in a newline. Rates are percentages with their Wilson 95 % interval; ``-`` is what
        was not measured.
    """
    parts = [
        f"# {report.model}: refusals after compression and repair",
        headline(report),
        *([f"{gates_in_words(report.gates)}{reach_in_words(report)}"] if report.gates else []),
        "## Refusals",
        _refusal_table(report.stages),
        f"Share of prompts refused, with its Wilson 95 % interval{_sample_sizes(report.stages)}{_length(report)}.",
        "## Utility and size",
        _utility_table(report.stages),
        *_tokens_counted(report.stages),
        "## Refusal direction",
        _direction_table(report),
        *changes_section(report),
        *repair_section(report),
        *controls_section(report),
        "## Gates",
        _gate_table(report),
    ]
    if report.written:
        parts += ["## Written", bullets(f"{what}: `{where}`" for what, where in report.written.items())]
    if report.notes:
        parts += ["## Notes", bullets(report.notes)]
    parts += ["## Settings and environment", pairs(report.settings), pairs(report.environment)]
    if report.timings:
        parts += ["## Time", pairs({stage: f"{seconds:.1f} s" for stage, seconds in report.timings.items()})]
        parts.append(f"Peak memory: {report.peak_memory_bytes / 2**20:.0f} MiB.")
    return "\n\n".join(parts) + "\n"


def headline(report: Report) -> str:
    """One sentence: what happened to the refusals of harmful prompts, stage by stage.

    Returns:
        For example ``Refusals of harmful prompts: 99 % (dense) -> 88 % (compressed) -> 98 % (repaired)``.
    """
    steps = [
        f"{percent(stage.refusal.harmful.rate)} ({stage.name})"
        for stage in report.stages
        if stage.refusal.harmful is not None
    ]
    return f"Refusals of harmful prompts: {' -> '.join(steps) or 'not measured'}"


def gates_in_words(gates: Sequence[Gate]) -> str:
    """Whether all gates passed, or which failed.

    >>> gates_in_words([Gate("refusals", "safety", True, 0.9, 0.8), Gate("perplexity", "utility", False, 3.0, 2.0)])
    '1 of 2 gates failed: perplexity (utility).'
    """
    failed = [f"{gate.name} ({gate.kind})" for gate in gates if not gate.passed]
    return f"{len(failed)} of {len(gates)} gates failed: {', '.join(failed)}." if failed else "All gates passed."


def reach_in_words(report: Report) -> str:
    """That the safety gate says nothing about the repair, where the compressed model would pass it; else nothing."""
    rate = report.unrepaired_reach
    if rate is None:
        return ""
    return (
        f" The compressed model's refusals, {percent(rate.rate)} of {rate.n} harmful prompts, reach the bar of the "
        "safety gate as well: passing it shows no repair."
    )


def _length(report: Report) -> str:
    judged = judged_on(report.settings.get("max_new_tokens"))
    return f", {judged}" if judged else ""


def _tokens_counted(stages: Sequence[Stage]) -> list[str]:
    """What perplexity and distances are means over, where all stages that have them saw as many tokens."""
    counts = {stage.utility.tokens for stage in stages if stage.utility is not None}
    said = "Perplexity, KL and same next token: over {:,} held-out tokens."
    return [said.format(counts.pop())] if len(counts) == 1 else []


def _sample_sizes(stages: Sequence[Stage]) -> str:
    sizes = counts_in_words(sample_sizes(stages))
    return f" ({sizes})" if sizes else ""


def _refusal_table(stages: Sequence[Stage]) -> str:
    rows = [
        [
            stage.name,
            *(interval(getattr(stage.refusal, kind)) for kind in ("harmful", "harmless", "twin", "incoherent")),
        ]
        for stage in stages
    ]
    return table(["stage", "harmful", "harmless", "benign twins", "incoherent answers"], rows)


def _utility_table(stages: Sequence[Stage]) -> str:
    rows = []
    for stage in stages:
        utility = stage.utility
        rows.append(
            [
                stage.name,
                number(utility.perplexity if utility else None),
                number(utility.kl_to_dense if utility else None, 4),
                percent(utility.top1_agreement) if utility and utility.top1_agreement is not None else "-",
                percent(stage.sparsity),
                number(stage.bits_per_weight, 2),
                _parity(stage),
            ]
        )
    header = [
        "stage",
        "perplexity",
        "KL to dense",
        "same next token",
        "zeros",
        "bits per weight",
        "in llama.cpp",
    ]
    return table(header, rows)


def _parity(stage: Stage) -> str:
    if stage.not_checked:
        return f"not checked: {stage.not_checked}"
    if stage.parity is None:
        return "-"
    parity = stage.parity
    ids = "equal" if parity.token_ids_equal else "NOT equal"
    return f"token ids {ids}, {percent(parity.argmax_agreement)} same argmax, KL {parity.mean_kl:.2g}"


def _direction_table(report: Report) -> str:
    found = [("measured on the dense model", report.direction)]
    found += [(stage.name, stage.direction) for stage in report.stages if stage.direction is not None]
    header = [
        "stage",
        "layer",
        "position",
        "norm",
        "cosine to dense",
        "calibrated",
        "bypass",
        "induce",
        "KL",
        "passes selection",
    ]
    return table(header, [[name, *_direction_row(direction)] for name, direction in found])


def _direction_row(direction: DirectionFigures) -> list[str]:
    survived = {True: "yes", False: "no", None: "-"}[direction.survived]
    scores = (direction.bypass, direction.induce, direction.kl)
    return [
        str(direction.layer),
        str(direction.position),
        number(direction.norm, 2),
        number(direction.cosine_to_dense),
        number(direction.calibrated_cosine),
        *(number(score) for score in scores),
        survived,
    ]


def _gate_table(report: Report) -> str:
    rows = [
        [
            gate.name,
            gate.kind,
            "pass" if gate.passed else "**FAIL**",
            f"{gate.value:.4g}",
            f"{gate.limit:.4g}",
            gate.meaning,
        ]
        for gate in report.gates
    ]
    return table(["gate", "kind", "result", "value", "limit", "meaning"], rows)
