"""How the tensors of a folder become the tensors of a GGUF file: a few operations that families are described with.

A `Draft` is a tensor under way: its name in the folder's words, its shape, and the rows of stored tensors that it is
made of. An operation is a function from drafts to drafts (rename, drop, stack, split, reorder rows, change values);
a family of `families` is a list of them. Rows are only pointed at, so quantized weights go through as they are; only
`change` needs values. Knows shapes and names, reads no weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from aird_mlx.errors import ModelError

Values = Callable[[np.ndarray], np.ndarray]
Rows = range | np.ndarray


@dataclass(frozen=True)
class Piece:
    """Rows of one stored tensor: ``rows`` counts them in the matrix ``[rows, in]`` that its leading axes make."""

    source: str
    rows: Rows = field(compare=False)


@dataclass(frozen=True)
class Draft:
    """A tensor on its way into the file.

    Attributes:
        name: in Hugging Face's words, as far as the operations have come.
        shape: ``[out, in]``, ``[expert, out, in]`` or ``[out]``.
        pieces: what it is made of, in order; together as many rows as the shape has.
        change: applied to each piece's float32 values, None to leave them as they are.
    """

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    change: Values | None = field(default=None, compare=False)

    @property
    def source(self) -> str:
        """The stored tensor that it begins with."""
        return self.pieces[0].source


Drafts = Sequence[Draft]
Operation = Callable[[Drafts, Any], Drafts]  # the second argument: `hyperparameters.Hyperparameters`


def take_all(name: str, shape: tuple[int, ...]) -> Draft:
    """A stored tensor as it is.

    >>> take_all("w", (4, 2)).pieces[0].rows
    range(0, 4)
    """
    return Draft(name, shape, (Piece(name, range(count_rows(shape))),))


def count_rows(shape: tuple[int, ...]) -> int:
    """Rows of the matrix that the leading axes make; a vector's numbers are its rows."""
    return math.prod(shape[:-1]) if len(shape) > 1 else math.prod(shape)


def rename(pattern: str, replacement: str) -> Operation:
    """``re.sub`` in every name."""
    compiled = re.compile(pattern)
    return lambda drafts, _: [replace(draft, name=compiled.sub(replacement, draft.name)) for draft in drafts]


def drop(pattern: str) -> Operation:
    """Leave out what neither runtime needs, such as precomputed rope tables."""
    compiled = re.compile(pattern)
    return lambda drafts, _: [draft for draft in drafts if not compiled.search(draft.name)]


def stack(pattern: str = r"(.*\.experts)\.(\d+)\.(.+)") -> Operation:
    """Put the numbered tensors of ``pattern`` (before, number, after) on top of each other, the number left out.

    Raises:
        ModelError: numbers are missing, or shapes differ.
    """
    compiled = re.compile(pattern)

    def apply(drafts: Drafts, _: Any) -> Drafts:
        groups: dict[str, dict[int, Draft]] = {}
        others = []
        for draft in drafts:
            found = compiled.fullmatch(draft.name)
            if found:
                groups.setdefault(f"{found[1]}.{found[3]}", {})[int(found[2])] = draft
            else:
                others.append(draft)
        for name, members in groups.items():
            shapes = {member.shape for member in members.values()}
            if sorted(members) != list(range(len(members))) or len(shapes) > 1:
                raise ModelError(
                    f"model: {name} comes in parts {sorted(members)} of shapes {sorted(shapes)}; parts from 0 on of "
                    "one shape are needed. Copy the folder again."
                )
            ordered = [members[number] for number in sorted(members)]
            pieces = tuple(piece for member in ordered for piece in member.pieces)
            others.append(Draft(name, (len(ordered), *ordered[0].shape), pieces, ordered[0].change))
        return others

    return apply


def split(pattern: str, parts: Callable[[Any, int], Mapping[str, Rows]]) -> Operation:
    """Cut a tensor along its output axis into several.

    Args:
        pattern: what of the name is replaced by each part's name.
        parts: from hyperparameters and the length of the axis to name and rows of each part.
    """
    compiled = re.compile(pattern)

    def apply(drafts: Drafts, hyperparameters: Any) -> Drafts:
        result = []
        for draft in drafts:
            if not compiled.search(draft.name):
                result.append(draft)
                continue
            axis = _output_axis(draft.shape)
            for name, rows in parts(hyperparameters, draft.shape[axis]).items():
                shape = (*draft.shape[:axis], len(rows), *draft.shape[axis + 1 :])
                result.append(replace(_choose(draft, rows), name=compiled.sub(name, draft.name), shape=shape))
        return result

    return apply


def halves(first: str, second: str) -> Callable[[Any, int], dict[str, Rows]]:
    """For `split`: the first half of the rows, and the second."""
    return lambda _, length: {first: range(length // 2), second: range(length // 2, length)}


def interleaved(first: str, second: str) -> Callable[[Any, int], dict[str, Rows]]:
    """For `split`: the even rows, and the odd."""
    return lambda _, length: {first: range(0, length, 2), second: range(1, length, 2)}


def reorder(pattern: str, order: Callable[[Any, int], np.ndarray]) -> Operation:
    """Put the rows of the output axis in another order.

    Args:
        pattern: of the name.
        order: from hyperparameters and the length of the axis to the old row of each new one.
    """
    compiled = re.compile(pattern)
    return lambda drafts, hyperparameters: [
        _choose(draft, order(hyperparameters, draft.shape[_output_axis(draft.shape)]))
        if compiled.search(draft.name)
        else draft
        for draft in drafts
    ]


def by_heads(pattern: str, heads: Callable[[Any], int]) -> Operation:
    """See ``[head * out, in]`` as ``[head, out, in]``."""
    compiled = re.compile(pattern)
    return lambda drafts, hyperparameters: [
        replace(draft, shape=(heads(hyperparameters), draft.shape[0] // heads(hyperparameters), *draft.shape[1:]))
        if compiled.search(draft.name)
        else draft
        for draft in drafts
    ]


def when(applies: Callable[[Drafts, Any], bool], *operations: Operation) -> Operation:
    """Do these operations only where ``applies`` says so: the layouts of a family, its variants."""

    def apply(drafts: Drafts, hyperparameters: Any) -> Drafts:
        if applies(drafts, hyperparameters):
            for operation in operations:
                drafts = operation(drafts, hyperparameters)
        return drafts

    return apply


def then(first: Values | None, second: Values) -> Values:
    """One function after the other."""
    return second if first is None else lambda values: second(first(values))


def cut(pieces: Sequence[Piece], length: int) -> tuple[Piece, ...]:
    """The same rows in pieces of ``length``."""
    return tuple(
        Piece(piece.source, piece.rows[start : start + length])
        for piece in pieces
        for start in range(0, len(piece.rows), length)
    )


def _output_axis(shape: tuple[int, ...]) -> int:
    return max(len(shape) - 2, 0)


def _choose(draft: Draft, rows: Rows) -> Draft:
    """These rows of every matrix of a draft; only of values that are still as they are stored."""
    assert draft.change is None, draft.name
    axis = _output_axis(draft.shape)
    matrices, length = math.prod(draft.shape[:axis]), draft.shape[axis]
    if len(draft.pieces) == 1 and matrices == 1 and isinstance(rows, range) and isinstance(draft.pieces[0].rows, range):
        chosen: Rows = draft.pieces[0].rows[rows.start : rows.stop : rows.step]
        return replace(draft, pieces=(Piece(draft.source, chosen),))
    wanted = (np.arange(matrices)[:, None] * length + np.asarray(rows)).reshape(-1)
    pieces, first = [], 0
    for piece in draft.pieces:
        inside = wanted[(wanted >= first) & (wanted < first + len(piece.rows))] - first
        pieces.append(Piece(piece.source, np.asarray(piece.rows)[inside]))
        first += len(piece.rows)
    return replace(draft, pieces=tuple(pieces))
