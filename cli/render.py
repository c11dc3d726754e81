"""What the user sees: one progress display, tables from report objects; only `render*` modules import rich.

Tables go to stdout and are readable at 80 columns without colour; progress goes to stderr. Nothing is
computed here: every figure is in the report.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from aird_mlx.report import Report, Stage, to_json
from aird_mlx.report_page import blocks, interval, number, percent, sample_sizes

if TYPE_CHECKING:
    from aird_mlx.gguf_export import GgufFile
    from aird_mlx.pipeline import Plan

Part = Table | Text

CAPTIONS = {
    "utility": Text("KL and top-1: against the dense model; zeros: of the pruned linears, as written", style="dim"),
    "direction": Text("cosine: at the dense model's place; calibrated: across halves of the prompts", style="dim"),
}


class StageProgress:
    """The progress callback of a long job: ``progress(stage, done, total)``; use it in a ``with`` statement.

    On a terminal it is one line (stage, bar, count, elapsed, remaining) that leaves a line behind for each
    finished stage; elsewhere only those lines are written, and nothing at all when ``quiet``.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._live = self._console.is_terminal and not quiet
        self._display = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._live,
        )
        self._stage: str | None = None
        self._since = time.monotonic()  # of the last finished stage: the times shown add up to the whole

    def __enter__(self) -> StageProgress:
        self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        self._display.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` parts of ``stage`` are finished; a new name starts a new stage."""
        if stage != self._stage:
            self._finish()
            self._start(stage, total)
        if self._live:
            self._display.update(self._display.task_ids[0], completed=done, total=total)
        if done >= total:
            self._finish()

    def _start(self, stage: str, total: int) -> None:
        self._stage = stage
        if self._live:
            self._display.add_task(stage, total=total)

    def _finish(self) -> None:
        if self._stage is None:
            return
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        for task in self._display.task_ids:
            self._display.remove_task(task)
        self._display.refresh()  # or the line of the finished stage is drawn once more below
        self._display.console.print(Text.assemble(("done  ", "green"), f"{self._stage} ({_duration(seconds)})"))
        self._stage = None


def show_report(report: Report, as_json: bool = False) -> None:
    """Print a report: JSON alone, or the result in one line followed by tables."""
    if as_json:
        sys.stdout.write(to_json(report))
        return
    sections: list[list[Part]] = [
        [_headline(report)],
        [_refusal_table(report.stages), _refusal_caption(report.stages)],
        [_utility_table(report.stages), CAPTIONS["utility"]],
        [_direction_table(report), CAPTIONS["direction"]],
        [_repair_lines(report)],
        [_gate_table(report), *_failures(report)],
    ]
    show_sections(sections)
    Console().print()
    show_files(report.written)
    show_notes(report.notes)


def show_sections(sections: Iterable[Iterable[Part]]) -> None:
    """Print tables and lines, with an empty line before each section."""
    console = Console(highlight=False)
    for section in sections:
        console.print()
        for part in section:
            console.print(part)


def show_notes(notes: Iterable[str]) -> None:
    """Print what a user should know besides the figures, one line each."""
    for note in notes:
        Console(highlight=False).print(Text(f"note: {note}"))


def headline(text: str) -> Text:
    """What stands above a table."""
    return Text(text, style="bold")


def caption(text: str) -> Text:
    """What explains the table above it."""
    return Text(text, style="dim")


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
    table.add_row("weights", _size(plan.size_bytes))
    table.add_row("output", Text(plan.out))
    for index, stage in enumerate(plan.stages, start=1):
        table.add_row(f"step {index}", Text(stage))
    console.print(table)
    show_notes(plan.notes)


def show_export(written: GgufFile) -> None:
    """Print which file was written, and where llama.cpp will differ from MLX."""
    show_files({"gguf": str(written.path), "size": _size(written.size_bytes), "sha256": written.sha256})
    show_notes(written.notes)


def show_files(written: dict[str, str]) -> None:
    """Print what was written where, one line each; a path is never broken into lines, since it gets copied."""
    console = Console(highlight=False)
    for what, where in written.items():
        console.print(Text.assemble((f"{what:<12}", "bold"), where), soft_wrap=True)


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


def new_table(*headers: str) -> Table:
    """A table of figures: the first column names them, the others are right-aligned; nothing is cut off if narrow."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(headers[0], overflow="fold")
    for header in headers[1:]:
        table.add_column(header, justify="right", overflow="fold")
    return table


def _refusal_table(stages: list[Stage]) -> Table:
    table = new_table("refused", "harmful", "harmless", "benign twins")
    for stage in stages:
        refusal = stage.refusal
        cells = [interval(rate) for rate in (refusal.harmful, refusal.harmless, refusal.twin)]
        table.add_row(Text(stage.name, style=_stage_style(stage)), *(Text(cell) for cell in cells))
    return table


def _refusal_caption(stages: list[Stage]) -> Text:
    sizes = ", ".join(f"{n} {kind}" for kind, n in sample_sizes(stages).items())
    return Text(f"n = {sizes or 'none'}; in brackets the Wilson 95 % interval", style="dim")


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
    lines = Text.assemble(
        ("repair: ", "bold"),
        f"rule {repair.rule}, blocks {blocks(repair.layers)}, strength {repair.strength:g}, rank {rank}, ",
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


def _gate_table(report: Report) -> Table:
    table = new_table("gate", "", "value", "limit")
    for gate in report.gates:
        word = Text("pass", style="green") if gate.passed else Text("FAIL", style="bold red")
        table.add_row(Text(gate.name), word, f"{gate.value:.4g}", f"{gate.limit:.4g}")
    return table


def _failures(report: Report) -> list[Text]:
    failed = [gate for gate in report.gates if not gate.passed]
    if not failed:
        return [Text("All gates passed.", style="bold green")] if report.gates else []
    lines = [Text(f"{len(failed)} of {len(report.gates)} gates failed.", style="bold red")]
    return lines + [Text(f"{gate.name} ({gate.kind}), needed: {gate.meaning or 'the limit'}") for gate in failed]


def _percent_or_dash(share: float | None) -> str:
    return "-" if share is None else percent(share)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def _size(count: int) -> str:
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 2**power:
            return f"{count / 2**power:.1f} {unit}"
    return f"{count} bytes"
