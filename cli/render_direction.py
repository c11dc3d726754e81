"""Tables of the refusal direction: one model's, or two compared. As `render`: 80 columns, no colour needed."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from aird_mlx.report import ComparisonReport, DirectionReport, Estimate, PlaceFigures, ScoredDirection, to_json
from aird_mlx.report_page import number, percent

from .render import caption, new_table, show_files, show_notes

MOST_POSITIONS = 12
SCORES = {
    "bypass": "log-odds, harmful prompts, ablated",
    "induce": "log-odds, harmless prompts, added",
    "kl": "nats, harmless prompts, ablated",
}


def show_direction(report: DirectionReport, as_json: bool = False) -> None:
    """Print a measured direction: JSON alone, or the winner, the best candidates and what to make of them."""
    if as_json:
        sys.stdout.write(to_json(report))
        return
    console = Console(highlight=False)
    selected = report.selected
    console.print(_headline(f"layer {selected.layer}, position {selected.position}, length {selected.norm:.3g}"))
    table = new_table("score", "value", "95 % interval")
    table.add_column("meaning", style="dim")
    for name, meaning in SCORES.items():
        estimate: Estimate = getattr(selected, name)
        table.add_row(name.replace("kl", "KL"), number(estimate.value), _interval(estimate), meaning)
    console.print(table)
    console.print()
    console.print(_candidate_table(report.candidates))
    console.print(
        caption(
            f"{report.considered} candidates, {report.survivors} pass the filters; wins: of {report.resamples} "
            f"resamples of the {_sizes(report.scored)} prompts they are scored on; means over "
            f"{_sizes(report.found)} prompts"
        )
    )
    console.print()
    console.print(_tokens(report.refusal_tokens))
    if report.twins_along is not None:
        console.print(
            f"Twins lie at {report.twins_along:.2f} on the way from harmless (0) to harmful (1) prompts along it."
        )
    console.print(Text(report.said, style="bold"))
    show_files(report.written)
    show_notes(report.notes)


def show_comparison(report: ComparisonReport, as_json: bool = False) -> None:
    """Print a comparison: JSON alone, or figures at both places, a heat map, and the verdict."""
    if as_json:
        sys.stdout.write(to_json(report))
        return
    console = Console(highlight=False)
    table = new_table("direction", "layer", "position", "norm", "bypass", "induce", "KL", "wins")
    rows = {
        "dense": report.dense_selected,
        "other, same place": report.other_fixed,
        "other, own": report.other_selected,
    }
    for name, scored in rows.items():
        if scored is not None:
            table.add_row(name, *_cells(scored))
    console.print(table)
    console.print()
    console.print(_comparison_table([report.fixed, report.reselected]))
    console.print(
        caption(
            f"halves: cosine of a model with itself across halves of the prompts; {report.splits} splits of "
            f"{_sizes(report.found)} prompts, in brackets 95 % intervals"
        )
    )
    console.print()
    console.print(_heat_map(report))
    console.print(_heat_map_caption(report))
    console.print()
    console.print(_tokens(report.refusal_tokens))
    console.print(Text(report.verdict, style="bold"))
    show_files(report.written)
    show_notes(report.notes)


def _sizes(counts: list[int]) -> str:
    return f"{counts[0]} harmful and {counts[1]} harmless"


def _headline(text: str) -> Text:
    return Text.assemble(("refusal direction: ", "bold"), text)


def _tokens(tokens: list[str]) -> Text:
    return Text(f"Refusals start with: {' '.join(repr(token) for token in tokens)}")


def _cells(scored: ScoredDirection) -> list[str]:
    scores = (scored.bypass, scored.induce, scored.kl)
    figures = [number(score.value) for score in scores]
    return [str(scored.layer), str(scored.position), number(scored.norm, 2), *figures, percent(scored.win_share)]


def _candidate_table(candidates: list[ScoredDirection]) -> Table:
    table = new_table("candidate", "layer", "position", "norm", "bypass", "induce", "KL", "wins")
    table.add_column("")
    for rank, scored in enumerate(candidates, start=1):
        word = "near tie" if scored.near_tie and rank > 1 else ""
        table.add_row(str(rank), *_cells(scored), word if scored.survived else f"out {word}".strip())
    return table


def _comparison_table(places: list[PlaceFigures]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("compared", overflow="fold")
    for title in ("at the dense place", "each at its own"):
        table.add_column(title, justify="right", overflow="fold")

    def row(name: str, *cells: str) -> None:
        table.add_row(name, *cells)

    row(
        "layer, position", *(f"{one.layer}, {one.position} / {one.other_layer}, {one.other_position}" for one in places)
    )
    row("cosine, plain", *(number(one.cosine) for one in places))
    row("halves, dense / other", *(f"{one.null_dense:.3f} / {one.null_other:.3f}" for one in places))
    row("cosine, calibrated", *(_estimate(one.calibrated_cosine, 3) for one in places))
    row("angle in degrees", *(_estimate(one.angle, 1) for one in places))
    row("norm, dense / other", *(f"{one.norm_dense:.3g} / {one.norm_other:.3g}" for one in places))
    row("norm, other : dense", *(_estimate(one.norm_ratio, 3) for one in places))
    return table


def _interval(estimate: Estimate, digits: int = 3) -> str:
    return f"[{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def _estimate(estimate: Estimate | None, digits: int) -> str:
    return "undefined" if estimate is None else f"{estimate.value:.{digits}f} {_interval(estimate, digits)}"


def _heat_map(report: ComparisonReport) -> Table:
    """Layers downwards, positions to the right; the plain cosine in brackets where the calibrated one is undefined."""
    positions = sorted({one.position for one in report.places})[-MOST_POSITIONS:]
    cells = {(one.layer, one.position): _heat_cell(one) for one in report.places}
    for scored, mark in ((report.other_selected, "+"), (report.dense_selected, "*")):
        cells[scored.layer, scored.position].append(mark, style="bold")
    table = new_table("layer", *(str(position) for position in positions))
    for layer in sorted({one.layer for one in report.places}):
        table.add_row(str(layer), *(cells[layer, position] for position in positions))
    return table


def _heat_cell(one: PlaceFigures) -> Text:
    if one.calibrated_cosine is None:
        return Text(f"({one.cosine:.2f})", style="dim")
    value = one.calibrated_cosine.value
    return Text(f"{value:.2f}", style="green" if value >= 0.95 else "yellow" if value >= 0.7 else "red")


def _heat_map_caption(report: ComparisonReport) -> Text:
    names = f"* selected in {Path(report.dense).name}, + in {Path(report.other).name}"
    return caption(f"calibrated cosine by layer and position; (plain) where undefined; {names}")
