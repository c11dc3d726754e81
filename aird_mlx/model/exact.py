"""What a model computes when nothing is rounded on the way: its logits in float32, a block at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map

from aird_mlx.model.chat_model import ChatModel


def exact_logits(model: ChatModel, tokens: Sequence[int]) -> np.ndarray:
    """Logits ``[token, vocab]`` computed in float32, block by block, whatever type the weights have.

    llama.cpp sums in float32 too, while MLX rounds to bfloat16 between operations: of a hundred tokens, the likeliest
    next one then differs at three.
    """

    def run(index: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> mx.array:
        stored = block.parameters()
        block.update(tree_map(_in_float32, stored))
        try:
            hidden: mx.array = block(_in_float32(args[0]), *args[1:], **kwargs)
            mx.eval(hidden)
            return hidden
        finally:
            block.update(stored)
            model.release(index)

    with model.block_taps(run):
        return np.array(model.network(mx.array([list(tokens)]))[0].astype(mx.float32))


def _in_float32(array: mx.array) -> mx.array:
    return array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array
