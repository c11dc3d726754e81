"""LM Studio: its tree of models, ``DIR/<publisher>/<model>/<file>.gguf``.

A file is linked into it, or copied where the tree is on another disk. Source: LM Studio's documentation, "Import
models"; the default tree is ``~/.lmstudio/models``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path

from aird_mlx.errors import OutputError

PUBLISHER = "aird-mlx"  # of models that are nobody's on the hub


def place_in_lm_studio(file: Path, tree: Path, model: str) -> Path:
    """Put a GGUF file where LM Studio finds it.

    Args:
        file: the GGUF file.
        tree: LM Studio's folder of models.
        model: hub id, folder or name that the file was made from; the publisher of a hub id is kept.

    Returns:
        Where it is now.

    Raises:
        OutputError: something is there already, or cannot be written.
    """
    publisher, _, name = model.rpartition("/")
    if not publisher or "/" in publisher or publisher.startswith(".") or Path(model).exists():
        publisher, name = PUBLISHER, Path(model).resolve().name if Path(model).exists() else Path(model).name
    target = tree.expanduser() / publisher / f"{name}-GGUF" / file.name
    if os.path.lexists(target):
        raise OutputError(f"lm-studio: {target} exists already; a new place is needed. Remove it, or rename the file.")
    partial = target.with_name(target.name + ".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, target)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                raise
            shutil.copyfile(file, partial)
            partial.rename(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise OutputError(
            f"lm-studio: {target} cannot be written ({error.strerror or error}); a writable folder of models is "
            "needed. Free space, or give LM Studio's own folder."
        ) from error
    return target
