"""Where the files of an export go: one name for each type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from aird_mlx.errors import UsageError
from aird_mlx.gguf_export.outtypes import AUTO
from aird_mlx.gguf_export.preparation import resolve_outtype


def name_files(
    model: str, folder: Path, outfile: str | None, outtypes: Sequence[str], **types: str | None
) -> dict[str, Path]:
    """A file for each type; ``auto`` becomes the type it means for this folder.

    Args:
        model: as given: ``demo``, a folder or a hub id.
        folder: where that is.
        outfile: a pattern, ``{ftype}`` in it stands for the type, ``{FTYPE}`` for it in capitals; None: a name made
            of the model's, in its folder, or in the current one where the folder is not the user's.
        outtypes: the types, each once.
        types: ``embedding_type`` and ``output_type`` of the files, as for `export_gguf`.

    Returns:
        From the type as given (``auto`` stays ``auto``) to its file.

    Raises:
        UsageError: ``auto`` is one of the other types, two would go into one file, the name is a folder's, or a
            matrix cannot have its type.
        ModelError, ExportError, DependencyError: the model cannot be exported.
    """
    named = {outtype: resolve_outtype(folder, outtype, **types) for outtype in outtypes}
    if len(set(named.values())) < len(named):  # only auto can be another one
        raise UsageError(
            f"export: outtype auto is {named[AUTO]} for this model, and so is the other; a type for each file is "
            "needed. Leave one out."
        )
    own = Path(model).expanduser().is_dir()
    pattern = outfile or str((folder if own else Path()) / f"{_base_name(model, folder)}-{{FTYPE}}.gguf")
    files = {
        outtype: Path(pattern.replace("{ftype}", kind).replace("{FTYPE}", kind.upper()))
        for outtype, kind in named.items()
    }
    if len(set(files.values())) < len(files):
        raise UsageError(
            f"export: {len(files)} types and --outfile {pattern!r}; a name for each is needed. Put {{ftype}} in it."
        )
    for path in files.values():
        if path.is_dir():
            raise UsageError(f"export: --outfile {str(path)!r} is a folder; the name of a file is needed. Add one.")
    return files


def name_imatrix(model: str, folder: Path, files: Mapping[str, Path]) -> Path:
    """Where an importance matrix measured for these files goes: beside the first, named after the model."""
    return next(iter(files.values())).with_name(f"{_base_name(model, folder)}-imatrix.gguf")


def _base_name(model: str, folder: Path) -> str:
    return folder.resolve().name if Path(model).expanduser().is_dir() else Path(model).name
