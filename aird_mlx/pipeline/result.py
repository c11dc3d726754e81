"""The result of a run: its report, the pages, and the folders' final names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from aird_mlx.compress import NOT_FASTER, pruned_sizes, quantized_sizes
from aird_mlx.direction import Direction
from aird_mlx.environment import describe_environment
from aird_mlx.gates import Limits, judge_gates
from aird_mlx.guard.bom import bom_of
from aird_mlx.guard.seal import sidecar_of
from aird_mlx.inputs import Inputs
from aird_mlx.model import ChatModel, peak_memory
from aird_mlx.pipeline.export import stem_of
from aird_mlx.reference import MAX_NEW_TOKENS
from aird_mlx.report import Control, PruningReport, QuantizationReport, RepairFigures, Report, Stage, to_json
from aird_mlx.report_page import percent, to_markdown, to_model_card
from aird_mlx.settings import RepairSettings, settings_record
from aird_mlx.stages import direction_figures, gguf_path, stage_changes
from aird_mlx.workspace import Workspace


def limits_of(settings: RepairSettings) -> Limits:
    """What the repair may cost, in the search and at the gates."""
    return Limits(settings.max_over_refusal / 100, settings.max_perplexity)


def make_report(
    settings: RepairSettings,
    workspace: Workspace,
    dense: ChatModel,
    inputs: Inputs,
    *,
    direction: Direction,
    stages: list[Stage],
    repair: RepairFigures,
    controls: list[Control],
    pruned: PruningReport | None,
    quantized: QuantizationReport | None,
) -> Report:
    """Everything one run measured and wrote."""
    record = {name: value for name, value in settings_record(settings).items() if name not in ("resume", "dry_run")}
    record["max_new_tokens"] = settings.max_new_tokens or MAX_NEW_TOKENS  # what rates are judged on is part of them
    exported = (note for stage in stages for note in stage.notes)
    out = workspace.out
    if quantized is not None:
        quantized = replace(quantized, sizes=quantized_sizes(workspace.folder / "mlx", quantized))
    elif pruned is not None:
        pruned = replace(pruned, sizes=pruned_sizes(workspace.folder / "mlx", pruned))
    written = {"mlx": str(settings.mlx_path or out / "mlx"), "report": str(out / "report.json")}
    for kind in (stage.name.partition(":")[2] for stage in stages if stage.name.startswith("exported:")):
        path = gguf_path(out, stem_of(settings), kind)
        written |= {
            f"gguf {kind}": str(path),
            f"hashes {kind}": str(sidecar_of(path)),
            f"bom {kind}": str(bom_of(path)),
        }
    return Report(
        model=settings.model,
        settings=record,
        environment=describe_environment(settings.seed),
        direction=direction_figures(direction, 1.0),
        stages=stages,
        repair=repair,
        pruning=pruned,
        quantization=quantized,
        gates=judge_gates(stages, repair, allow_dense=settings.allow_dense, limits=limits_of(settings)),
        changes=stage_changes(stages),
        controls=controls,
        written=written,
        notes=[
            *dense.notes,
            *(pruned.notes if pruned else []),
            *(_quantization_notes(quantized) if quantized else []),
            *_size_notes(pruned, quantized),
            *inputs.notes,
            *dict.fromkeys(exported),
        ],
        timings=workspace.timings,
        peak_memory_bytes=peak_memory(),
    )


def _size_notes(pruned: PruningReport | None, quantized: QuantizationReport | None) -> list[str]:
    """What the compression brings on disk, and the zeros in it, plainly."""
    compressed = quantized or pruned
    if compressed is None:
        return []
    sizes = "on disk: " + ", ".join(
        f"{name} {count / 1e6:,.1f} MB" for name, count in compressed.sizes.items() if name != "packed"
    )
    if pruned is None or not pruned.tensors:
        return [sizes]
    packed = f"with zeros packed it would be {compressed.sizes['packed'] / 1e6:,.1f} MB, which nothing here reads"
    return [f"{sizes}; {packed}", NOT_FASTER]


def finish(settings: RepairSettings, workspace: Workspace, report: Report, source: Mapping[str, Any]) -> None:
    """Write the reports and the model card (from the front matter ``source``), and give the folders their names."""
    folder = workspace.folder
    with workspace.guarding():
        (folder / "report.json").write_text(to_json(report), encoding="utf-8")
        (folder / "report.md").write_text(to_markdown(report), encoding="utf-8")
        (folder / "mlx" / "README.md").write_text(to_model_card(report, source), encoding="utf-8")
    workspace.finish(
        leave_out=(
            "stages",
            "compressed",
            "compressed.safetensors",
            "answers.json",
            "canaries.json",
            "patch.json",
            *(f"{half}.{kind}" for half in ("half", "rest") for kind in ("safetensors", "json")),
            "plan.json",
            "pruning.json",
            "quantization.json",
        ),
        elsewhere={} if settings.mlx_path is None else {"mlx": settings.mlx_path},
    )


def _quantization_notes(quantized: QuantizationReport) -> list[str]:
    kept = [] if quantized.zeros_kept == 1 else [f"{percent(quantized.zeros_kept)} of the zeros survived quantization"]
    return [*quantized.notes, *kept]
