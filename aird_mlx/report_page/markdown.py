"""Markdown: tables and lists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aird_mlx.report_page.words import blocks


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; bars in its cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def pairs(values: dict[str, object] | dict[str, str]) -> str:
    """A list of names with their values."""
    return bullets(f"{key}: {_cell(value)}" for key, value in values.items())


def bullets(items: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {item}" for item in items)


def _cell(value: object) -> str:
    """A value of the settings, the environment or a trial, on one line."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(item)}" for key, item in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        whole = all(isinstance(item, int) for item in value)
        return (blocks(value) if whole else ", ".join(_cell(item) for item in value)) if value else "-"
    return "-" if value is None else str(value)
