"""The one walk over the blocks: hidden states of many sequences, carried from block to block.

Blocks run through their own ``__call__`` with the arguments (masks) the network itself would pass: these are
recorded once with every block replaced by a pass-through, and the network's end (norm and head) is run the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from aird_mlx.activations.batches import TokenBatch
from aird_mlx.activations.inputs import Routed, by_token, keep_choice, keep_input, keep_routed_input
from aird_mlx.architectures import Layout
from aird_mlx.errors import ModelError
from aird_mlx.model import BlockCall, ChatModel, record_calls


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
        model.release_outside()
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
        taps = {name: keep_input(inputs, name) for name in plain}
        taps |= {owner: keep_choice(choices, owner) for owner in owners.values()}
        taps |= {name: keep_routed_input(routed, name) for name in fused}
        with self.model.linear_taps(self.layer, taps):
            self.run_block(index)
        return inputs, {name: by_token(*routed[name], choices[owner]) for name, owner in owners.items()}

    def advance(self, outputs: Sequence[mx.array] | None = None) -> None:
        """Carry every batch through the current block; ``outputs`` are what its last run gave, where that is known."""
        for index in range(len(self.batches)):
            self.hidden[index] = self.run_block(index) if outputs is None else outputs[index]
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
