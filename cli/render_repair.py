"""How the result of `repair` looks in the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from aird_mlx.report import Report, Stage, to_json
from aird_mlx.report_page import (
    blocks,
    by_refusals,
    calibration_words,
    counts_in_words,
    interval,
    judged_on,
    number,
    p_value,
    percent,
    plan_words,
    reach_in_words,
    sample_sizes,
    shares_in_words,
)

from .render import Part, caption, duration, gate_parts, new_table, show_files, show_notes, show_sections, size

if TYPE_CHECKING:
    from aird_mlx.pipeline import Plan

FRONT_ROWS = 8

CAPTIONS = {
    "utility": caption("KL and top-1: against the dense model; zeros: of the pruned linears, as written"),
    "direction": caption("cosine: at the dense model's place; calibrated: across halves of the prompts"),
}


def show_report(report: Report, as_json: bool = False) -> None:
    """Print a report: JSON alone, or the result in one line followed by tables."""
    if as_json:
        sys.stdout.write(to_json(report))
        return
    sections: list[list[Part]] = [
        [_headline(report)],
        [_refusal_table(report.stages), _refusal_caption(report)],
        [_utility_table(report.stages), CAPTIONS["utility"]],
        [_direction_table(report), CAPTIONS["direction"]],
        [_repair_lines(report)],
        _front_section(report),
        _changes_section(report),
        _controls_section(report),
        [*gate_parts(report.gates), *([Text(said.strip())] if (said := reach_in_words(report)) else [])],
    ]
    show_sections(sections)
    Console().print()
    show_files(report.written)
    show_notes(report.notes)


def show_plan(plan: Plan, as_json: bool = False) -> None:
    """Print what a run would do: JSON alone, or a table."""
    if as_json:
        sys.stdout.write(to_json(plan))
        return
    console = Console(highlight=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", overflow="fold")
    table.add_column(overflow="fold")
    table.add_row("model", Text(plan.model))
    table.add_row("parameters", f"{plan.parameters:,}")
    table.add_row("weights", size(plan.size_bytes))
    table.add_row("output", Text(plan.out))
    for index, stage in enumerate(plan.stages, start=1):
        table.add_row(f"step {index}", Text(stage))
    estimate = plan.estimate
    how = "one block in memory at a time" if plan.streaming else "whole models in memory"
    table.add_row("memory", f"{size(estimate.peak_memory_bytes)} at most ({how})")
    table.add_row("disk", f"{size(estimate.disk_bytes)} written, what is removed at the end included")
    for one in estimate.stages:
        table.add_row("time", f"{one.name}: {duration(one.seconds)}")
    speed = f"{estimate.speed.flops / 1e9:.0f} GFLOP/s and {estimate.speed.pass_seconds * 1e3:.0f} ms a pass"
    table.add_row("", f"estimates at {speed}, timed now; answers and solvers are taken to run to their limits")
    console.print(table)
    show_notes(plan.notes)


def _headline(report: Report) -> Text:
    line = Text("Refused harmful prompts:", style="bold")
    measured = [stage for stage in report.stages if stage.refusal.harmful is not None]
    shown = [stage for stage in measured if not stage.name.startswith("exported")] or measured
    for index, stage in enumerate(shown):
        if stage.refusal.harmful is not None:
            line.append(f"{' ->' if index else ''} {stage.name} ")
            line.append(percent(stage.refusal.harmful.rate), style=_stage_style(stage))
    return line if shown else line.append(" not measured")


def _stage_style(stage: Stage) -> str:
    return {"compressed": "bold red", "repaired": "bold green"}.get(stage.name, "bold")


def _refusal_table(stages: list[Stage]) -> Table:
    table = new_table("refused", "harmful", "harmless", "benign twins")
    for stage in stages:
        refusal = stage.refusal
        cells = [interval(rate) for rate in (refusal.harmful, refusal.harmless, refusal.twin)]
        table.add_row(Text(stage.name, style=_stage_style(stage)), *(Text(cell) for cell in cells))
    return table


def _refusal_caption(report: Report) -> Text:
    sizes = counts_in_words(sample_sizes(report.stages))
    words = f"n = {sizes or 'none'}; in brackets the Wilson 95 % interval"
    return caption(f"{words}\n{judged_on(report.settings.get('max_new_tokens'))}".rstrip())


def _utility_table(stages: list[Stage]) -> Table:
    table = new_table("utility", "perplexity", "KL", "top-1", "incoherent", "zeros", "bits/weight")
    for stage in stages:
        utility, incoherent = stage.utility, stage.refusal.incoherent
        table.add_row(
            stage.name,
            number(utility.perplexity if utility else None),
            number(utility.kl_to_dense if utility else None, 4),
            _percent_or_dash(utility.top1_agreement if utility else None),
            _percent_or_dash(incoherent.rate if incoherent else None),
            percent(stage.sparsity),
            number(stage.bits_per_weight, 2),
        )
    return table


def _direction_table(report: Report) -> Table:
    table = new_table("direction", "layer", "position", "norm", "cosine", "calibrated", "bypass", "induce", "KL")
    rows = [(stage.name, stage.direction) for stage in report.stages if stage.direction is not None]
    if "dense" not in dict(rows):
        rows = [("dense", report.direction), *rows]
    for name, direction in rows:
        scores = (direction.bypass, direction.induce, direction.kl)
        table.add_row(
            name,
            str(direction.layer),
            str(direction.position),
            number(direction.norm, 2),
            number(direction.cosine_to_dense),
            number(direction.calibrated_cosine),
            *(number(score, 2) for score in scores),
        )
    return table


def _repair_lines(report: Report) -> Text:
    repair = report.repair
    rank = "full" if repair.rank is None else str(repair.rank)
    tokens = "" if repair.tokens == "all" else f", on {calibration_words(repair.tokens)}"
    lines = Text.assemble(
        ("repair: ", "bold"),
        f"rule {repair.rule}{tokens}, blocks {blocks(repair.layers)}, strength {repair.strength:g}, rank {rank}, ",
        f"sparsity lost {percent(repair.sparsity_lost)}",
    )
    if repair.why:
        lines.append(f"\n{repair.why}", style="dim")
    for stage in report.stages:
        if stage.not_checked:
            lines.append(f"\n{stage.name}: not checked: {stage.not_checked}")
        elif stage.parity is not None:
            parity = stage.parity
            ids = "equal" if parity.token_ids_equal else "NOT EQUAL"
            argmax = f"same argmax {percent(parity.argmax_agreement)} of {parity.tokens} tokens"
            lines.append(f"\n{stage.name} in llama.cpp: token ids {ids}, {argmax}, KL {parity.mean_kl:.2g}")
    return lines


def _percent_or_dash(share: float | None) -> str:
    return "-" if share is None else percent(share)


def _front_section(report: Report) -> list[Part]:
    """The Pareto front of the search, with the finalists' answers."""
    front = [tried for tried in by_refusals(report.repair.tried) if tried.on_front or tried.answered]
    if len(front) < 2:
        return []
    table = new_table("plans none beats", "harmful", "harmless", "twin", "KL", "answered")
    for tried in front[:FRONT_ROWS]:
        answered = tried.answered
        table.add_row(
            plan_words(tried),
            *shares_in_words(tried.foreseen, report.repair.validated),
            number(tried.foreseen.kl_to_dense),
            "" if answered is None else percent(answered.harmful),
        )
    more = f"; {len(front) - FRONT_ROWS} more in the report" if len(front) > FRONT_ROWS else ""
    text = "validation prompts; likeliest next token opens a refusal; answered: harmful refused"
    return [table, caption(text + more)]


def _changes_section(report: Report) -> list[Part]:
    """Refusals gained and lost, prompt by prompt."""
    if not report.changes:
        return []
    table = new_table("prompt by prompt", "from", "before", "repaired", "gained", "lost", "p")
    for one in report.changes:
        change = one.change
        shares = (percent(change.before), percent(change.after))
        table.add_row(one.kind, one.before, *shares, str(change.gained), str(change.lost), p_value(change.p_value))
    return [table, caption("refusals gained and lost since that stage; p: McNemar's exact test")]


def _controls_section(report: Report) -> list[Part]:
    """The controls beside the repaired stage."""
    if not report.controls:
        return []
    table = new_table("control", "harmful", "harmless", "twin", "perplexity")
    lines = []
    for one in report.controls:
        rates = (one.refusal.harmful, one.refusal.harmless, one.refusal.twin)
        shares = ("-" if rate is None else percent(rate.rate) for rate in rates)
        table.add_row(one.name, *shares, number(one.utility.perplexity))
        lines.append(caption(f"{one.name}: {one.meaning}"))
    return [table, *lines]
