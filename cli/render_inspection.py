"""What the user sees of a model's inspection: its blocks by kind, and what each stage can do."""

from __future__ import annotations

import sys

from aird_mlx.report import Inspection, to_json
from aird_mlx.report_page import blocks, number

from .render import caption, headline, new_table, show_notes, show_sections


def show_inspection(report: Inspection, as_json: bool = False) -> None:
    """Print what a model is made of: JSON alone, or two tables."""
    if as_json:
        sys.stdout.write(to_json(report))
        return
    kinds = new_table("blocks", "kind", "written by", "linears", "experts")
    for kind in report.kinds:
        writers = [f"{name} through {kind.norms[name]}" if name in kind.norms else name for name in kind.writers]
        experts = str(kind.experts) if kind.experts else "-"
        kinds.add_row(blocks(kind.blocks), kind.kind, "\n".join(writers), str(kind.linears), experts)
    stages = new_table("stage", "", "")
    for stage in report.stages:
        stages.add_row(stage.stage, "yes" if stage.supported else "no", stage.why)
    title = f"{report.model_type} ({report.origin}): {report.parameters:,} parameters, width {report.hidden_size}"
    context = f"{report.context_length} tokens" if report.context_length else "no limit named"
    how = f"{number(report.bits_per_weight, 1)} bits per weight, context {context}, head {report.head}"
    proof = f"the writers explain what every block changes, to {report.writer_error:.1g} of the stream"
    show_sections([[headline(title), caption(how)], [kinds, caption(proof)], [stages]])
    show_notes(report.notes)
