"""LM Studio: its tree of models, ``DIR/<publisher>/<model>/<file>.gguf``.

A file is linked into it, or copied where the tree is on another disk. Source: LM Studio's documentation, "Import
models"; the default tree is ``~/.lmstudio/models``.
"""

from __future__ import annotations

import os
from pathlib import Path

from aird_mlx.errors import OutputError
from aird_mlx.workspace import link_or_copy, whole_file, writing_to

PUBLISHER = "aird-mlx"  # of models that are nobody's on the hub


def lm_studio_place(file: Path, tree: Path, model: str) -> Path:
    """Where LM Studio finds a GGUF file.

    Args:
        file: the GGUF file.
        tree: LM Studio's folder of models.
        model: hub id, folder or name that the file was made from; the publisher of a hub id is kept.
    """
    publisher, _, name = model.rpartition("/")
    if not publisher or "/" in publisher or publisher.startswith(".") or Path(model).exists():
        publisher, name = PUBLISHER, Path(model).resolve().name if Path(model).exists() else Path(model).name
    return Path(os.path.expanduser(tree)) / publisher / f"{name}-GGUF" / file.name


def check_new_place(target: Path) -> None:
    """Find out whether a file can be put there.

    Raises:
        OutputError: something is there already.
    """
    if os.path.lexists(target):
        raise OutputError(f"lm-studio: {target} exists already; a new place is needed. Remove it, or rename the file.")


def place_in_lm_studio(file: Path, tree: Path, model: str) -> Path:
    """Put a GGUF file where LM Studio finds it.

    Args:
        file, tree, model: as for `lm_studio_place`.

    Returns:
        Where it is now.

    Raises:
        OutputError: something is there already, or cannot be written.
    """
    target = lm_studio_place(file, tree, model)
    check_new_place(target)
    with writing_to(target, "folder of models"), whole_file(target) as partial:
        link_or_copy(file, partial)
    return target
