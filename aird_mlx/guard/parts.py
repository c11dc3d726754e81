"""The parts of a GGUF file that was split: which files they are, opened and checked against each other.

A file that was not split is its own only part. Source: ``llama_model_loader`` of llama.cpp.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from aird_mlx.errors import IntegrityError
from aird_mlx.guard.structure import Structure, opened, parse

SPLIT_NUMBER, SPLIT_COUNT, SPLIT_TENSORS = "split.no", "split.count", "split.tensors.count"
MOST_PARTS = 9999


class Part(NamedTuple):
    """An open file and its layout."""

    descriptor: int
    structure: Structure


def part_path(path: Path, number: int, count: int) -> Path:
    """Where part ``number``, from 0, of a file goes.

    >>> part_path(Path("m.gguf"), 0, 3).name
    'm-00001-of-00003.gguf'
    """
    return path.with_name(f"{path.name.removesuffix('.gguf')}-{number + 1:05d}-of-{count:05d}.gguf")


def open_parts(path: Path, first: Part, stack: ExitStack) -> list[Part]:
    """All parts of a file, in order.

    Args:
        path: of the first part.
        first: that part, opened.
        stack: closes the others.

    Raises:
        IntegrityError: one is missing or damaged, or they do not belong together.
    """
    structure = first.structure
    count, number = (structure.whole(key) or 0 for key in (SPLIT_COUNT, SPLIT_NUMBER))
    if count == 0:
        return [first]
    if not 0 < count <= MOST_PARTS or number != 0:
        raise _wrong(f"{path.name} is part {number + 1} of {count}; the first, of at most {MOST_PARTS}, is needed")
    ending = part_path(Path(".gguf"), 0, count).name
    if not path.name.endswith(ending):
        raise _wrong(f"{path.name} is the first of {count} parts; llama.cpp needs a name that ends with {ending}")
    stem = path.with_name(path.name.removesuffix(ending) + ".gguf")
    parts = [first]
    for index in range(1, count):
        other = part_path(stem, index, count)
        if not other.is_file():
            raise _wrong(f"{other.name} is missing; all {count} parts are needed")
        descriptor = stack.enter_context(opened(other))
        part = Part(descriptor, parse(descriptor))
        said = [part.structure.whole(key) for key in (SPLIT_NUMBER, SPLIT_COUNT)]
        if said != [index, count]:
            raise _wrong(
                f"{other.name} says it is {said[0]} of {said[1]}, counted from 0; {index} of {count} is needed"
            )
        parts.append(part)
    names = [tensor.name for part in parts for tensor in part.structure.tensors]
    if len(names) != structure.whole(SPLIT_TENSORS) or len(set(names)) < len(names):
        raise _wrong(f"the parts have {len(set(names))} tensors; {structure.whole(SPLIT_TENSORS)} are needed")
    return parts


def join(parts: list[Part]) -> Structure:
    """The layout of the first part with the tensors of all; their places are those in their own files."""
    return replace(parts[0].structure, tensors=tuple(one for part in parts for one in part.structure.tensors))


def _wrong(seen: str) -> IntegrityError:
    return IntegrityError(f"parts: {seen}. Get the files again.")
