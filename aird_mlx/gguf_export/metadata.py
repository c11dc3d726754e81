"""The general part of a file's metadata: its licence. Source: the GGUF specification."""

from __future__ import annotations

import re
from pathlib import Path

from aird_mlx.gguf_export.hyperparameters import read_json

__all__ = ["QUANTIZATION_VERSION", "read_json", "read_licence"]

QUANTIZATION_VERSION = 2


def read_licence(folder: Path) -> str | None:
    """The ``license:`` of the model card's front matter, if the folder has one."""
    try:
        card = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    front = re.match(r"---\s*\n(.*?)\n---", card, re.DOTALL)
    found = re.search(r"^license:\s*['\"]?([\w.\-]+)", front.group(1), re.MULTILINE) if front else None
    return found.group(1) if found else None
