"""Results to JSON and back: `to_json` and `from_json` are each other's inverse."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from aird_mlx.errors import AirdError
from aird_mlx.report.figures import SCHEMA

# What is run to get a result of each kind.
COMMANDS = {"Evaluation": "eval", "DirectionReport": "direction", "ComparisonReport": "compare"}

T = TypeVar("T")


def to_json(result: Any) -> str:
    """Any dataclass of this package as indented JSON text.

    >>> from aird_mlx.report.figures import Rate
    >>> from_json(Rate, to_json(Rate(0.5, 0.4, 0.6, 10)))
    Rate(rate=0.5, low=0.4, high=0.6, n=10)
    """
    return json.dumps(dataclasses.asdict(result), indent=2, ensure_ascii=False) + "\n"


def from_json(kind: type[T], text: str, source: Path | None = None) -> T:
    """Read back what `to_json` wrote.

    Args:
        kind: the dataclass.
        text: JSON.
        source: where the text is from, for the message.

    Raises:
        AirdError: the text is not JSON, of another schema, lacks a required key, or has a value of another type.
    """
    try:
        return typing.cast(T, _build(kind, json.loads(text), kind.__name__))
    except (ValueError, TypeError, RecursionError) as error:  # JSONDecodeError is a ValueError
        where = "" if source is None else f"{source} is "
        command = COMMANDS.get(kind.__name__, "repair")
        raise AirdError(
            f"report: {where}not a {kind.__name__} ({error}); a result in JSON of schema {SCHEMA} is needed. "
            f"Run `aird-mlx {command}` again."
        ) from error


def read_result(kind: type[T], path: Path, *, stage: str, needed: str) -> T:
    """Read a file that `to_json` filled.

    Args:
        kind: the dataclass.
        path: the file.
        stage, needed: of the message when it cannot be read: who reads, what is needed and what to do.

    Raises:
        AirdError: it cannot be read, or is not one.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or "unreadable") if isinstance(error, OSError) else "not UTF-8 text"
        raise AirdError(f"{stage}: cannot read {path} ({reason}); {needed}") from error
    return from_json(kind, text, path)


def _build(kind: Any, value: Any, name: str) -> Any:
    """``value`` as what ``kind`` says, at any depth; a TypeError names the place."""
    if kind is Any:
        return value
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        kind = next(member for member in typing.get_args(kind) if member is not types.NoneType)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, _checked(dict, value, name))
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return [_build(arguments[0], item, name) for item in _checked(list, value, name)]
    if origin is dict:
        return {key: _build(arguments[1], item, f"{name}.{key}") for key, item in _checked(dict, value, name).items()}
    return _checked(kind, value, name)


def _build_dataclass(kind: Any, value: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(kind)
    if "schema" in hints and value.get("schema", SCHEMA) != SCHEMA:
        raise ValueError(f"schema {value['schema']!r:.20}")
    return kind(**{name: _build(hints[name], item, name) for name, item in value.items() if name in hints})


def _checked(kind: type, value: Any, name: str) -> Any:
    # JSON writes whole floats as it finds them, and to Python a bool is an int.
    fits = type(value) in (int, float) if kind is float else type(value) is kind
    if not fits:
        raise TypeError(f"{name} is of type {type(value).__name__}, not {kind.__name__}")
    return value
