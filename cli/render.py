"""What the user sees: one progress display, tables from report objects; only `render*` modules import rich.

Tables go to stdout and are readable at 80 columns without colour; progress goes to stderr. Nothing is
computed here: every figure is in the report.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
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

if TYPE_CHECKING:
    from aird_mlx.chat_apps import ChatAppFiles
    from aird_mlx.gguf_export import ExportPlan
    from aird_mlx.pipeline.single_export import ExportedFile
    from aird_mlx.report import Gate

Part = Table | Text


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
        self._display.console.print(Text.assemble(("done  ", "green"), f"{self._stage} ({duration(seconds)})"))
        self._stage = None


def show_sections(sections: Iterable[Iterable[Part]]) -> None:
    """Print tables and lines, with an empty line before each section."""
    console = Console(highlight=False)
    for section in filter(None, sections):
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


def gate_parts(gates: Sequence[Gate]) -> list[Part]:
    """The bars with their values, and which were missed."""
    table = new_table("gate", "", "value", "limit")
    for gate in gates:
        word = Text("pass", style="green") if gate.passed else Text("FAIL", style="bold red")
        table.add_row(Text(gate.name), word, f"{gate.value:.4g}", f"{gate.limit:.4g}")
    failed = [gate for gate in gates if not gate.passed]
    if not failed:
        return [table, Text("All gates passed.", style="bold green")] if gates else [table]
    verdict = Text(f"{len(failed)} of {len(gates)} gates failed.", style="bold red")
    lines = [Text(f"{gate.name} ({gate.kind}), needed: {gate.meaning or 'the limit'}") for gate in failed]
    return [table, verdict, *lines]


def show_export(found: ExportedFile, apps: ChatAppFiles | None = None, placed: Sequence[Path] = ()) -> None:
    """Print which file was written, what for chat programs and where else, and where llama.cpp differs from MLX."""
    written, row = found.written, found.row
    zeros = f"{100 * written.sparsity:.1f} % of the linears' weights, {100 * written.sparsity_before:.1f} % before"
    if written.sparsity_before:
        zeros += f", of which {100 * written.retention:.1f} % are zero still"
    for path in written.parts or (written.path,):
        show_files({"gguf": str(path)})
    show_files({"size": size(written.size_bytes), "zeros": zeros})
    if apps is not None:
        show_files({kind: str(path) for kind, path in apps.files.items()})
    for path in placed:
        show_files({"gguf": str(path)})
    if row.parity is None:
        show_notes([f"not run in llama.cpp beside MLX: {row.not_checked}"])
    else:
        console = Console(highlight=False)
        for part in gate_parts(found.gates):
            console.print(part)
    show_notes([*written.notes, *(apps.notes if apps else ())])


def show_export_plans(plans: Sequence[ExportPlan]) -> None:
    """Print every tensor that would be written, with its type and bytes, and the total."""
    console = Console(highlight=False)
    for plan in plans:
        table = new_table(plan.outtype, "shape", "type", "bytes")
        for tensor in plan.tensors:
            table.add_row(tensor.name, " x ".join(map(str, tensor.shape)), tensor.type, f"{tensor.size_bytes:,}")
        table.add_row("total", "", "", f"{plan.size_bytes:,}", style="bold")
        console.print(table)
        show_notes(plan.notes)


def show_files(written: dict[str, str]) -> None:
    """Print what was written where, one line each; a path is never broken into lines, since it gets copied."""
    console = Console(highlight=False)
    for what, where in written.items():
        console.print(Text.assemble((f"{what:<12}", "bold"), where), soft_wrap=True)


def new_table(*headers: str) -> Table:
    """A table of figures: the first column names them, the others are right-aligned; nothing is cut off if narrow."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(headers[0], overflow="fold")
    for header in headers[1:]:
        table.add_column(header, justify="right", overflow="fold")
    return table


def duration(seconds: float) -> str:
    """Seconds in the unit that fits.

    >>> duration(5.2), duration(300), duration(9000)
    ('5.2 s', '5.0 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def size(count: int) -> str:
    """Bytes in the unit that fits."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 2**power:
            return f"{count / 2**power:.1f} {unit}"
    return f"{count} bytes"
