"""One exported file: written, run in llama.cpp, told how it was made, sealed, and given its bill of materials."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

from aird_mlx import __version__
from aird_mlx.chat_apps import write_chat_apps
from aird_mlx.gguf_export import export_gguf
from aird_mlx.gguf_export.imatrix import read_imatrix, write_imatrix
from aird_mlx.gguf_export.outtypes import find_outtype
from aird_mlx.guard.bom import write_bom
from aird_mlx.guard.record import PROBE_PROMPTS, CanarySet, file_facts, make_manifest
from aird_mlx.guard.seal import seal
from aird_mlx.importance import importance_on_reference
from aird_mlx.model import ChatModel
from aird_mlx.pipeline.canary_run import canary_set, judge_canaries
from aird_mlx.prompts import KINDS, render_prompt
from aird_mlx.reference import Reference
from aird_mlx.report import RepairFigures, Stage
from aird_mlx.settings import Progress, RepairSettings
from aird_mlx.stages import evaluate_exported, gguf_path
from aird_mlx.workspace import Workspace, read_json, write_json


def stem_of(settings: RepairSettings) -> str:
    """What an exported file is called, without its type."""
    return f"{Path(settings.model).name}-repaired"


def answer_canaries(
    settings: RepairSettings,
    workspace: Workspace,
    dense: ChatModel,
    max_new_tokens: int,
    progress: Callable[[int, int], None],
) -> CanarySet:
    """The canary prompts and what the dense model makes of them, one class letter each."""
    canaries = canary_set(settings.model, dense, max_new_tokens)

    def judge() -> list[str]:
        return [judged[0] for judged in judge_canaries(dense, canaries, settings.batch_size, progress)]

    letters = workspace.stage("canaries", "canaries.json", judge, write_json, read_json)
    return dataclasses.replace(canaries, dense="".join(letters))


def export_stage(
    settings: RepairSettings,
    workspace: Workspace,
    outtype: str,
    written: ChatModel,
    reference: Reference,
    repair: RepairFigures,
    repaired: Stage,
    canaries: CanarySet,
    *,
    max_new_tokens: int,
    progress: Progress,
) -> Stage:
    """Write the MLX folder of the workspace as a GGUF file with its manifest; its row of the result."""
    imatrix = None
    if not find_outtype(outtype).native:
        imatrix = workspace.stage(
            "imatrix",
            "gguf/imatrix.gguf",
            lambda: importance_on_reference(written, reference, progress),
            write_imatrix,
            read_imatrix,
        )
    with workspace.guarding():
        exported = export_gguf(
            workspace.folder / "mlx",
            gguf_path(workspace.folder, stem_of(settings), outtype),
            outtype,
            imatrix=imatrix,
            zero_exact=find_outtype(outtype).can_keep_zeros,
            name=stem_of(settings),
            extra_metadata={"aird.version": __version__, "aird.repair.rule": repair.rule},
            copied=True,
            progress=partial(progress, f"export {outtype}"),
        )
    stage = evaluate_exported(exported, written, reference, max_new_tokens=max_new_tokens, progress=progress)
    probe_set = reference.inputs.probe
    prompts = {
        part: {
            kind: [render_prompt(written.tokenizer, one) for one in probe_set.part(kind, part)[:PROBE_PROMPTS]]
            for kind in KINDS
        }
        for part in ("find", "validate")
    }
    manifest = make_manifest(
        exported.path,
        file_facts(settings, repair, stage, repaired),
        prompts["find"],
        prompts["validate"],
        canaries,
        partial(progress, f"probe of {outtype}"),
    )
    with workspace.guarding():
        final = gguf_path(workspace.out, stem_of(settings), outtype)
        apps = write_chat_apps(exported.path, exported.chat, final=final)
        root = seal(exported.path, manifest)
        write_bom(exported.path)
        return dataclasses.replace(stage, root=root, notes=[*stage.notes, *apps.notes])
