"""Exporting: GGUF files with what goes beside them, or a repair as adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .boundary import show


def export_files(
    chosen: str,
    outfile: str | None,
    outtype: tuple[str, ...],
    *,
    dry_run: bool,
    revision: str | None,
    trust_remote_code: bool,
    check: bool,
    imatrix: str | None,
    max_size: str | None,
    chat_apps: bool,
    lm_studio: Path | None,
    **how: Any,
) -> int:
    """Write MODEL as a GGUF file of each type."""
    from aird_mlx.chat_apps import place_in_lm_studio, write_chat_apps
    from aird_mlx.gguf_export import name_files, name_imatrix
    from aird_mlx.guard.split import plan_in_parts, read_split_size
    from aird_mlx.importance import MEASURE, find_importance
    from aird_mlx.model import find_folder
    from aird_mlx.pipeline.single_export import Exporter, check_export_places

    from . import render

    how["max_size"] = None if max_size is None else read_split_size(max_size)
    loading: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    folder = find_folder(chosen, revision=revision)
    types = {word: how[word] for word in ("embedding_type", "output_type")}
    files = name_files(chosen, folder, outfile, outtype, **types)
    if dry_run:
        return show(0, render.show_export_plans, [plan_in_parts(folder, kind, **how) for kind in files])
    in_parts = how["max_size"] is not None or how["max_tensors"] is not None
    check_export_places(files.values(), chosen, in_parts=in_parts, chat_apps=chat_apps, lm_studio=lm_studio)
    with render.StageProgress() as progress:
        place = name_imatrix(chosen, folder, files)
        how["imatrix"] = find_importance(imatrix, chosen, files, place, progress=progress, **loading)
    if imatrix == MEASURE and how["imatrix"] is None:
        render.show_notes(["no imatrix was measured: of these types none uses one"])
    exporter, codes = Exporter(chosen, folder, check=check, **loading), []
    for kind, path in files.items():
        with render.StageProgress() as progress:
            found = exporter.export(path, kind, progress=progress, **how)
        written = found.written
        apps = write_chat_apps(path, written.chat, parts=written.parts) if chat_apps else None
        parts = written.parts or (written.path,)
        placed = [place_in_lm_studio(part, lm_studio, chosen) for part in parts] if lm_studio else []
        codes.append(show(found.exit_code, render.show_export, found, apps, placed))
    return max(codes)


def export_adapters(out: Path, as_json: bool, **options: Any) -> int:
    """Write the repair in the folder OUT as adapters of the compressed model."""
    from aird_mlx.pipeline.adapters import export_adapters

    from . import render, render_compress

    with render.StageProgress(quiet=as_json) as progress:
        written = export_adapters(out, progress=progress, **options)
    return show(0, render_compress.show_adapters, written, as_json)
