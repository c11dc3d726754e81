"""Prompt files to prompts: plain text, JSON lines and tables, the field's benchmark files among them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aird_mlx.errors import PromptError

# Columns of the field's benchmark files that hold the request, most specific first.
PROMPT_COLUMNS = ("prompt", "goal", "behavior", "forbidden_prompt", "instruction", "question", "text", "query")
# HarmBench's contextual behaviours come with a text that is put before the request, as its own code does.
CONTEXT_COLUMN, CONTEXT_SEPARATOR = "contextstring", "\n\n---\n\n"


def read_prompts(path: Path, kind: str = "harmful", *, column: str | None = None) -> list[str]:
    """Read a prompt file: .txt (one a line), .jsonl (``prompt`` or another known key), .csv/.tsv (a known column).

    A .json file may hold one array instead of JSON lines. The case of a file's extension does not matter.

    Knows AdvBench, JailbreakBench, HarmBench (its context is put before the request), StrongREJECT, MaliciousInstruct
    and XSTest by their columns. In files that label their rows safe/unsafe (XSTest), ``harmful`` takes the unsafe
    rows and the other kinds the safe ones. Repeated prompts are dropped.

    Args:
        path: the file.
        kind: ``harmful``, ``harmless`` or ``twin``.
        column: where the prompts are, of a table or JSON lines; a known column by default. Case does not matter.

    Raises:
        PromptError: missing, unreadable, empty, or without the column.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise PromptError(
            f"prompts: there is no file {path}; a .txt, .jsonl or .csv is needed. Check the path."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"prompts: {path} cannot be read ({error}); UTF-8 text is needed. Check the file.") from error
    rows: list[str]
    labels: set[str] = set()
    columns = PROMPT_COLUMNS if column is None else (column.strip().lower(),)
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".json", ".ndjson"):
        rows = _read_json(path, text, kind, columns, labels)
    elif suffix in (".csv", ".tsv"):
        rows = _read_table(path, text, kind, columns, labels)
    else:
        rows = text.splitlines()
    prompts = list(dict.fromkeys(row.strip() for row in rows if row.strip()))
    if not prompts and labels:
        raise PromptError(
            f"prompts: {path} holds no prompts that are {kind}: its rows are labelled {' and '.join(sorted(labels))}; "
            f"rows labelled {'unsafe' if kind == 'harmful' else 'safe'} are needed. Use another file for this kind."
        )
    if not prompts:
        raise PromptError(f"prompts: {path} holds no prompts; at least one is needed. Fill the file.")
    for prompt in prompts:
        if any("\ud800" <= letter <= "\udfff" for letter in prompt):
            raise PromptError(
                f"prompts: {path} holds half a surrogate pair in {prompt[:60]!r}; whole characters are needed. Mend it."
            )
    return prompts


def _read_json(path: Path, text: str, kind: str, columns: Sequence[str], labels: set[str]) -> list[str]:
    prompts = []
    for place, row in _json_rows(path, text):
        if isinstance(row, str):
            prompts.append(row)
            continue
        fields = {str(key).strip().lower(): value for key, value in row.items()} if isinstance(row, dict) else {}
        column = next((name for name in columns if isinstance(fields.get(name), str)), None)
        if column is None:
            known = [f"{fields[name]!r:.60} under {name}" for name in columns if name in fields]
            raise PromptError(
                f"prompts: {path} {place} has {known[0] if known else f'the keys {sorted(fields)}'}; a text under one "
                f"of {', '.join(columns)} is needed. {'Put it in quotes' if known else 'Rename the key'}."
            )
        if _is_wanted(fields, kind, labels):
            prompts.append(_request(fields, column))
    return prompts


def _json_rows(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """The elements of the array in a .json file, else the values of JSON lines, each with its place."""
    is_array = path.suffix.lower() == ".json" and text.lstrip().startswith("[")
    # Not splitlines: a JSON string may hold U+2028 and its like.
    for number, line in enumerate([text] if is_array else text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:  # JSONDecodeError is a ValueError
            place, form = ("", "an array of texts or objects") if is_array else (f" line {number}", "one object a line")
            raise PromptError(
                f"prompts: {path}{place} is not JSON ({error}); JSON, {form}, is needed. Mend it."
            ) from error
        if is_array:
            yield from ((f"element {index}", row) for index, row in enumerate(value, 1))
        else:
            yield f"line {number}", value


def _read_table(path: Path, text: str, kind: str, columns: Sequence[str], labels: set[str]) -> list[str]:
    try:
        reader = csv.DictReader(
            io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True
        )
        there = [str(name) for name in reader.fieldnames or ()]
        rows = list(reader)
    except csv.Error as error:
        raise PromptError(f"prompts: {path} is not a table ({error}); valid CSV is needed. Mend the file.") from error
    column = next((name for name in columns if name in {name.strip().lower() for name in there}), None)
    if column is None:
        raise PromptError(
            f"prompts: {path} has the columns {there}; one of {', '.join(columns)} is needed. "
            "Give the column that holds the prompts one of these names."
        )
    lowered = ({str(key).strip().lower(): value for key, value in row.items()} for row in rows)
    return [_request(row, column) for row in lowered if _is_wanted(row, kind, labels)]


def _is_wanted(row: dict[str, Any], kind: str, labels: set[str]) -> bool:
    """Whether a row is of this kind, by its label if it has one; the labels seen are put into ``labels``.

    XSTest's tables of model answers have none, but call the types of unsafe prompts ``contrast_...``.
    """
    label = str(row.get("label", "")).strip().lower()
    if not label and {"type", "completion"} <= row.keys() and str(row.get("id", "")).startswith("v2-"):
        label = "unsafe" if str(row.get("type", "")).strip().startswith("contrast_") else "safe"
    if label not in ("safe", "unsafe"):
        return True
    labels.add(label)
    return (label == "unsafe") == (kind == "harmful")


def _request(row: dict[str, Any], column: str) -> str:
    """The prompt of a row, behind its context where HarmBench gives one; "" for a row that is too short."""
    request, context = row[column] or "", row.get(CONTEXT_COLUMN)
    if column != "behavior" or not isinstance(context, str) or not context.strip() or not request.strip():
        return str(request)
    return f"{context.strip()}{CONTEXT_SEPARATOR}{request}"
