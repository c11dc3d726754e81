"""Operations on drafts that compute other values: sums, products, transposed matrices.

Each works on a piece's float32 values as it is read, so a quantized weight that is changed is no longer taken over
exactly. See `pieces` for those that only point at rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from aird_mlx.gguf_export.pieces import Draft, Drafts, Operation, Values, cut, then


def split_values(
    pattern: str, parts: Mapping[str, Values], shape: Callable[[tuple[int, ...]], tuple[int, ...]]
) -> Operation:
    """Make several tensors of one by functions of its values, a matrix at a time.

    Args:
        pattern: what of the name is replaced by each part's name.
        parts: name to function of a matrix's float32 values.
        shape: from the old shape to that of each part.
    """
    compiled = re.compile(pattern)

    def apply(drafts: Drafts, _: Any) -> Drafts:
        result = []
        for draft in drafts:
            if not compiled.search(draft.name):
                result.append(draft)
                continue
            pieces = cut(draft.pieces, draft.shape[-2])
            for name, values in parts.items():
                result.append(
                    Draft(compiled.sub(name, draft.name), shape(draft.shape), pieces, then(draft.change, values))
                )
        return result

    return apply


def change(
    pattern: str,
    values: Callable[[Any], Values],
    shape: Callable[[Any, tuple[int, ...]], tuple[int, ...]] = lambda _, shape: shape,
) -> Operation:
    """Compute other values, whole pieces at a time, from float32.

    Args:
        pattern: of the name.
        values: from hyperparameters to the function of a piece's array.
        shape: from hyperparameters and the old shape to the new.
    """
    compiled = re.compile(pattern)

    def apply(drafts: Drafts, hyperparameters: Any) -> Drafts:
        return [
            replace(
                draft,
                shape=shape(hyperparameters, draft.shape),
                change=then(draft.change, values(hyperparameters)),
            )
            if compiled.search(draft.name)
            else draft
            for draft in drafts
        ]

    return apply


def add(pattern: str, number: float) -> Operation:
    """Add a number: the one of norms that multiply with ``1 + weight``."""
    return change(pattern, lambda _: lambda values: values + np.float32(number))


def reshape(pattern: str, shape: Callable[[Any, tuple[int, ...]], tuple[int, ...]]) -> Operation:
    """The same values under another shape: from hyperparameters and the old shape to the new."""
    return change(pattern, lambda _: lambda values: values, shape)


def squeeze(pattern: str) -> Operation:
    """Drop axes of length 1: the one of a depthwise convolution, wherever the layout has it."""
    return reshape(pattern, lambda _, shape: tuple(axis for axis in shape if axis != 1))


def flatten(pattern: str) -> Operation:
    """One axis of them all."""
    return reshape(pattern, lambda _, shape: (math.prod(shape),))


def transpose(pattern: str) -> Operation:
    """Exchange the last two axes; an expert or a head at a time where there are three."""
    compiled = re.compile(pattern)
    return lambda drafts, _: [
        replace(
            draft,
            shape=(*draft.shape[:-2], draft.shape[-1], draft.shape[-2]),
            pieces=cut(draft.pieces, draft.shape[-2]),
            change=then(draft.change, lambda values: np.ascontiguousarray(values.T)),
        )
        if compiled.search(draft.name)
        else draft
        for draft in drafts
    ]


def times(pattern: str, factor: Callable[[Any], Any]) -> Operation:
    """Multiply by a number that ``factor`` finds in the hyperparameters, or by one for each row."""

    def multiply(hyperparameters: Any) -> Values:
        numbers = np.asarray(factor(hyperparameters), dtype=np.float32)
        return lambda values: values * (numbers[:, None] if numbers.ndim else numbers)

    return change(pattern, multiply)
