"""What the linears of a block read, kept as it passes; that of fused experts by token and expert."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np


@dataclass(frozen=True)
class Routed:
    """What a linear of fused experts reads: one row per token and expert that the token passes.

    Attributes:
        values: ``[row, in]``; the rows of a token follow each other, tokens in the order of the batch.
        experts: ``[row]`` int32, whose row it is.
        chosen: rows per token.
    """

    values: mx.array
    experts: mx.array
    chosen: int

    def rows(self, indices: np.ndarray) -> mx.array:
        """Some rows, ``[row, in]`` float32; a row of zeros where there are none."""
        if not len(indices):
            return mx.zeros((1, self.values.shape[1]))
        return self.values[mx.array(indices)].astype(mx.float32)

    def by_expert(self, counted: mx.array, expert_count: int) -> list[np.ndarray]:
        """Per expert the indices of its rows that count; ``counted`` is ``[batch, token]``."""
        counts = np.repeat(np.array(counted).reshape(-1) > 0, self.chosen)
        experts = np.where(counts, np.array(self.experts), expert_count)
        order = np.argsort(experts, kind="stable")
        bounds = np.searchsorted(experts[order], np.arange(expert_count + 1))
        return [order[bounds[one] : bounds[one + 1]] for one in range(expert_count)]


def keep_input(inputs: dict[str, mx.array], name: str) -> Callable[[nn.Module, mx.array], mx.array]:
    """A tap that keeps what a linear reads under ``name``."""

    def keep(linear: nn.Module, value: mx.array) -> mx.array:
        inputs[name] = value
        output: mx.array = linear(value)
        return output

    return keep


def keep_choice(choices: dict[str, mx.array], name: str) -> Callable[[nn.Module, mx.array], mx.array]:
    """A tap on fused experts that keeps which of them each token passes."""

    def keep(experts: nn.Module, value: mx.array) -> mx.array:
        choices[name] = experts.arguments[0]
        output: mx.array = experts(value)
        return output

    return keep


def keep_routed_input(
    inputs: dict[str, tuple[mx.array, mx.array]], name: str
) -> Callable[[nn.Module, mx.array], mx.array]:
    """A tap that keeps what a linear of fused experts reads, and whose each row is."""

    def keep(linear: nn.Module, value: mx.array) -> mx.array:
        inputs[name] = value, linear.arguments[0]
        output: mx.array = linear(value)
        return output

    return keep


def by_token(value: mx.array, experts: mx.array, choice: mx.array) -> Routed:
    """Undo what fused experts do to their inputs: many rows are sorted by expert, few stand once per token."""
    flat = choice.reshape(-1)
    rows = value.reshape(-1, value.shape[-1])
    if experts.ndim == 1 and choice.ndim > 1:
        order = mx.argsort(flat)
        assert mx.array_equal(experts, flat[order]).item(), "fused experts sort their rows by expert"
        rows = rows[mx.argsort(order)]
    elif rows.shape[0] != flat.shape[0]:
        rows = mx.repeat(rows, choice.shape[-1], axis=0)
    return Routed(rows, flat.astype(mx.int32), choice.shape[-1])
