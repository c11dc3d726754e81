"""Plain values and dataclasses of results as JSON files, and back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar

from aird_mlx.errors import AirdError, ResumeError
from aird_mlx.report import from_json

T = TypeVar("T")


def write_json(value: Any, path: Path) -> None:
    """Write a plain value as JSON."""
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a plain value back.

    Raises:
        ResumeError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(path, error) from error


def read_object(path: Path) -> dict[str, Any]:
    """`read_json` for an object; anything else counts as damaged."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise damaged(path, TypeError("keys with values are expected"))
    return found


def write_record(record: Any, path: Path) -> None:
    """Write a frozen dataclass of results as JSON."""
    write_json(dataclasses.asdict(record), path)


def read_record(kind: type[T], path: Path) -> T:
    """Read it back.

    Raises:
        AirdError: the text is not that of one. OSError: there is no such file.
    """
    return from_json(kind, path.read_text(encoding="utf-8"))


def damaged(path: Path, error: Exception) -> ResumeError:
    """The error for a file of an earlier run that cannot be read, and why."""
    reason = error.seen if isinstance(error, AirdError) else " ".join(str(error).split())[:200] or type(error).__name__
    return ResumeError(
        f"resume: {path} cannot be read ({reason}); what the earlier run wrote is needed, undamaged. "
        "Remove it to compute it again, or run without --resume to start again."
    )
