"""The one walk over the blocks: hidden states of many sequences, carried from block to block.

Blocks run through their own ``__call__`` with the arguments (masks) the network itself would pass: these are
recorded once with every block replaced by a pass-through, and the network's end (norm and head) is run the same way.
Sequences are padded on the right, where causal attention never looks, so padding changes nothing.
This module knows nothing about what the activations are for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from aird_mlx.architectures import Layout
from aird_mlx.errors import ModelError
from aird_mlx.model import BlockCall, ChatModel, record_calls

TOKENS_PER_BATCH = 8192


@dataclass(frozen=True)
class TokenBatch:
    """Sequences padded on the right to one length.

    Attributes:
        ids: ``[batch, token]`` int32, padded with 0.
        lengths: real tokens per sequence.
        order: which of the given sequences each row is.
        counted: ``[batch, token]`` float32, 1 where the token is real and counts, 0 elsewhere.
        opens: per sequence, the token that the first one of its answer is predicted from; -1 where there is no answer.
    """

    ids: mx.array
    lengths: tuple[int, ...]
    order: tuple[int, ...]
    counted: mx.array
    opens: tuple[int, ...]


def batch_sequences(
    sequences: Sequence[Sequence[int]],
    *,
    first_counted: Sequence[int] | None = None,
    first_answered: Sequence[int] | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> list[TokenBatch]:
    """Sort sequences by length and pad them into batches of at most ``tokens_per_batch`` tokens.

    Args:
        sequences: token ids, each at least one.
        first_counted: per sequence the first token that counts; earlier ones get ``counted`` 0. Default: all count.
        first_answered: per sequence the first token of an answer, 0 where there is none. Default: none.

    >>> [batch.ids.tolist() for batch in batch_sequences([[1, 2, 3], [4]])]
    [[[4, 0, 0], [1, 2, 3]]]
    """
    order = sorted(range(len(sequences)), key=lambda index: (len(sequences[index]), index))
    groups: list[list[int]] = []
    for index in order:
        if not groups or (len(groups[-1]) + 1) * len(sequences[index]) > tokens_per_batch:
            groups.append([])
        groups[-1].append(index)
    batches = []
    for group in groups:
        width = max(len(sequences[index]) for index in group)
        starts = [first_counted[index] if first_counted else 0 for index in group]
        lengths = tuple(len(sequences[index]) for index in group)
        ids = [list(sequences[index]) + [0] * (width - len(sequences[index])) for index in group]
        counted = [
            [float(start <= token < length) for token in range(width)]
            for start, length in zip(starts, lengths, strict=True)
        ]
        opens = tuple(first_answered[index] - 1 if first_answered else -1 for index in group)
        batches.append(TokenBatch(mx.array(ids, dtype=mx.int32), lengths, tuple(group), mx.array(counted), opens))
    return batches


def spread_rows(batches: Sequence[TokenBatch], tokens: int) -> list[tuple[int, list[int]]]:
    """Evenly spread sequences of about ``tokens`` counted tokens, as (batch, rows of it); all when there are no more.

    >>> spread_rows(batch_sequences([[1, 2]] * 6), 6)
    [(0, [1, 3, 5])]
    """
    total = sum(batch.counted.sum().item() for batch in batches)
    share, taken = min(1.0, tokens / max(total, 1.0)), 0.0
    chosen: list[tuple[int, list[int]]] = []
    for index, batch in enumerate(batches):
        rows = []
        for row in range(len(batch.lengths)):
            taken += share
            if taken >= 1 - 1e-9:
                taken -= 1
                rows.append(row)
        if rows:
            chosen.append((index, rows))
    return chosen


def thin_batches(batches: Sequence[TokenBatch], tokens: int) -> list[TokenBatch]:
    """The sequences `spread_rows` takes, as batches.

    >>> [batch.ids.shape for batch in thin_batches(batch_sequences([[1, 2]] * 10), 8)]
    [(4, 2)]
    """
    return [
        TokenBatch(
            batches[index].ids[mx.array(rows)],
            tuple(batches[index].lengths[row] for row in rows),
            tuple(batches[index].order[row] for row in rows),
            batches[index].counted[mx.array(rows)],
            tuple(batches[index].opens[row] for row in rows),
        )
        for index, rows in spread_rows(batches, tokens)
    ]


def shared_length(sequences: Sequence[Sequence[int]], least: int) -> int:
    """Tokens that all sequences start with, leaving at least one of each; 0 where there are fewer than ``least``.

    >>> shared_length([[1] * 9 + [2], [1] * 9 + [3, 4]], 8), shared_length([[1, 2], [1, 3]], 8)
    (9, 0)
    >>> shared_length([[1] * 20], 8)
    19
    """
    length, most = 0, min((len(ids) for ids in sequences), default=1) - 1
    while length < most and len({ids[length] for ids in sequences}) == 1:
        length += 1
    return length if length >= least else 0


class Walk:
    """Hidden states of some batches, standing at the input of block ``layer``.

    Attributes:
        layer: the block whose input ``hidden`` is; equals the number of blocks after the last one.
        hidden: one ``[batch, token, hidden]`` array per batch.
    """

    def __init__(self, model: ChatModel, batches: Sequence[TokenBatch], caches: Sequence[Any] | None = None) -> None:
        """Stand at the input of the first block; ``caches``, one per block, are passed on as the network would."""
        self.model = model
        self.batches = list(batches)
        self.layer = 0
        self.hidden: list[mx.array] = []
        self._calls: list[list[BlockCall]] = []
        # What the standing hidden states, and those that last passed a block, carry beside them.
        self._carried: list[tuple[Any, ...]] = []
        self._passing: list[tuple[Any, ...]] = []
        for batch in self.batches:
            embedded, calls = record_calls(model, batch.ids, caches)
            self.hidden.append(embedded)
            self._calls.append(calls)
            self._carried.append((None,) * model.architecture.carried)
        self._passing = list(self._carried)
        mx.eval(self.hidden)
        model.hold(0)

    @property
    def layout(self) -> Layout:
        """The parts of the block it stands at."""
        return self.model.layout(self.layer)

    @property
    def is_done(self) -> bool:
        """Whether the last block has been passed."""
        return self.layer == len(self.model.blocks)

    def run_block(
        self, index: int, hidden: mx.array | None = None, block: int | None = None, rows: mx.array | None = None
    ) -> mx.array:
        """Output of a block (default: the current one) for batch ``index``.

        ``hidden`` replaces its input; its rows are the batch's rows repeated, or those that ``rows`` names. Blocks
        after the current one follow each other, with the same rows.
        """
        number = self.layer if block is None else block
        given = self.hidden[index] if hidden is None else hidden
        carried = self._passing[index]
        if number == self.layer:
            carried = tuple(_matching_rows(value, given.shape[0], rows) for value in self._carried[index])
        output, self._passing[index] = self._calls[index][number].run(self.model.blocks[number], given, carried)
        return output

    def inputs_of(self, index: int, names: Sequence[str]) -> dict[str, mx.array]:
        """Run the current block on batch ``index``; the inputs ``[batch, token, in]`` of the named linears."""
        return self.all_inputs_of(index, names, ())[0]

    def routed_inputs_of(self, index: int, names: Sequence[str]) -> dict[str, Routed]:
        """Run the current block on batch ``index``; the inputs of the named linears of fused experts, by token."""
        return self.all_inputs_of(index, (), names)[1]

    def all_inputs_of(
        self, index: int, plain: Sequence[str], fused: Sequence[str]
    ) -> tuple[dict[str, mx.array], dict[str, Routed]]:
        """Run the current block once on batch ``index``; `inputs_of` some linears and `routed_inputs_of` others."""
        inputs: dict[str, mx.array] = {}
        choices: dict[str, mx.array] = {}
        routed: dict[str, tuple[mx.array, mx.array]] = {}
        owners = {name: name.rpartition(".")[0] for name in fused}
        taps = {name: _keep_input(inputs, name) for name in plain}
        taps |= {owner: _keep_choice(choices, owner) for owner in owners.values()}
        taps |= {name: _keep_routed_input(routed, name) for name in fused}
        with self.model.linear_taps(self.layer, taps):
            self.run_block(index)
        return inputs, {name: _by_token(*routed[name], choices[owner]) for name, owner in owners.items()}

    def advance(self) -> None:
        """Carry every batch through the current block."""
        for index in range(len(self.batches)):
            self.hidden[index] = self.run_block(index)
            check_finite(self.hidden[index], self.layer)
        self.model.release(self.layer)
        self.layer += 1
        self._carried = list(self._passing)
        if not self.is_done:
            self.model.hold(self.layer)

    def move_to(self, layer: int) -> None:
        """Advance until standing at the input of block ``layer``."""
        while self.layer < layer:
            self.advance()


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


def check_finite(hidden: mx.array, block: int) -> None:
    """Compute ``hidden``, the output of block ``block``.

    Raises:
        ModelError: some of it is not finite.
    """
    is_finite = mx.isfinite(hidden).all()
    mx.eval(hidden, is_finite)
    if not is_finite.item():
        raise ModelError(
            f"activations: block {block} gives values that are not finite; finite activations are needed. "
            "Check the model's weights (float16 may overflow: try its bfloat16 version)."
        )


def _keep_input(inputs: dict[str, mx.array], name: str) -> Callable[[nn.Module, mx.array], mx.array]:
    def keep(linear: nn.Module, value: mx.array) -> mx.array:
        inputs[name] = value
        output: mx.array = linear(value)
        return output

    return keep


def _keep_choice(choices: dict[str, mx.array], name: str) -> Callable[[nn.Module, mx.array], mx.array]:
    def keep(experts: nn.Module, value: mx.array) -> mx.array:
        choices[name] = experts.arguments[0]
        output: mx.array = experts(value)
        return output

    return keep


def _keep_routed_input(
    inputs: dict[str, tuple[mx.array, mx.array]], name: str
) -> Callable[[nn.Module, mx.array], mx.array]:
    def keep(linear: nn.Module, value: mx.array) -> mx.array:
        inputs[name] = value, linear.arguments[0]
        output: mx.array = linear(value)
        return output

    return keep


def _by_token(value: mx.array, experts: mx.array, choice: mx.array) -> Routed:
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


def _matching_rows(value: Any, count: int, rows: mx.array | None) -> Any:
    if value is None or (rows is None and value.shape[0] == count):
        return value
    return value[rows] if rows is not None else mx.tile(value, (count // value.shape[0],) + (1,) * (value.ndim - 1))


def run_head(model: ChatModel, hidden: mx.array) -> mx.array:
    """Logits ``[batch, token, vocab]`` of final hidden states, through the network's own norm and head."""

    count = model.architecture.carried

    def replace(index: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return (hidden, *args[1 : 1 + count]) if count else hidden

    with model.block_taps(replace):
        logits: mx.array = model.network(mx.zeros(hidden.shape[:2], dtype=mx.int32))
    return logits


def take_positions(hidden: mx.array, lengths: Sequence[int], positions: Sequence[int]) -> mx.array:
    """``[batch, position, hidden]``: the states at negative ``positions`` counted from each sequence's end."""
    index = mx.array([[length + position for position in positions] for length in lengths])
    return mx.take_along_axis(hidden, index[:, :, None], axis=1)


def flatten_counted(values: mx.array, counted: mx.array) -> mx.array:
    """``[batch, token, in]`` -> ``[batch * token, in]`` float32 with the tokens that do not count set to zero."""
    return (values.astype(mx.float32) * counted[..., None]).reshape(-1, values.shape[-1])
