"""What the network calls its blocks with: masks, caches, and whatever else, recorded without computing a block.

Some models hand values from block to block beside the hidden states (rwkv7: the first block's values); a row of the
table says how many, and they are the arguments after the hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from aird_mlx.model.chat_model import ChatModel


@dataclass(frozen=True)
class BlockCall:
    """The arguments of one block's call, but for the hidden states and what is carried beside them."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    def run(
        self, block: nn.Module, hidden: mx.array, carried: tuple[Any, ...] = ()
    ) -> tuple[mx.array, tuple[Any, ...]]:
        """Run ``block``: its output ``[batch, token, hidden]``, and what it hands to the next one."""
        output = block(hidden, *carried, *self.arguments, **self.keywords)
        return (output[0], tuple(output[1:])) if isinstance(output, tuple) else (output, ())


def record_calls(
    model: ChatModel, ids: mx.array, caches: Sequence[Any] | None = None
) -> tuple[mx.array, list[BlockCall]]:
    """The embedded input ``[batch, token, hidden]`` and the call of every block; no block is computed."""
    embedded: list[mx.array] = []
    calls: list[BlockCall] = []
    count = model.architecture.carried

    def pass_through(index: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if index == 0:
            embedded.append(args[0])
        calls.append(BlockCall(args[1 + count :], kwargs))
        return args[: 1 + count] if count else args[0]

    with model.block_taps(pass_through):
        model.network(ids, cache=caches)
    return embedded[0], calls
