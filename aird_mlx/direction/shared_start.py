"""Prompts whose common start, a template's opening and system message, is computed once for all of them.

What stands before a token is the only thing attention looks at, so the start's keys and values are the same in every
prompt: the blocks get them through the cache they take when generating. Models that remember in other ways (state
spaces, convolutions, recurrences) run every prompt whole. This module knows nothing of directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import create_attention_mask

from aird_mlx.activations import Walk, batch_sequences, lane_count, shared_length
from aird_mlx.model import ChatModel

# A shorter start is not worth running apart.
LEAST_SHARED = 8

# Of one batch: candidates multiply its rows, so that prompts of about one length, with little padding, fill a pass.
# Where there are lanes, batches are as many: scores then differ by rounding from those of a machine with others.
REST_TOKENS = 512


class StartCache:
    """One block's cache: with offset 0 it keeps the start's keys and values, else it puts them before the rest's.

    Attributes:
        offset: tokens before those of the call; the model reads it for its rotary embedding and its mask.
    """

    def __init__(self) -> None:
        self.offset = 0
        self._kept: tuple[mx.array, mx.array] | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Keys and values ``[row, head, token, head_dim]`` to attend to; each kept row serves equally many rows."""
        if not self.offset:
            self._kept = keys, values
            return keys, values
        assert self._kept is not None, "the start runs before the rest"
        times = keys.shape[0] // self._kept[0].shape[0]
        before, new = (mx.repeat(kept, times, axis=0) for kept in self._kept), (keys, values)
        first, second = (mx.concatenate(pair, axis=2) for pair in zip(before, new, strict=True))
        return first, second

    def make_mask(self, tokens: int, **options: Any) -> Any:
        """The mask of ``tokens`` after the start, as mlx-lm's own cache makes it."""
        return create_attention_mask(tokens, offset=self.offset, **options)


class SharedStart:
    """Some prompts standing at the input of block ``layer``: their common start once, and what follows in each.

    Attributes:
        start: a walk of the one sequence they share; None where that is short.
        rest: a walk of what follows.
    """

    def __init__(self, model: ChatModel, prompts: Sequence[Sequence[int]]) -> None:
        shared = shared_length(prompts, LEAST_SHARED) if model.attends_only else 0
        self.start: Walk | None = None
        self._caches: list[StartCache] | None = None
        if shared:
            self._caches = [StartCache() for _ in model.blocks]
            self.start = Walk(model, batch_sequences([prompts[0][:shared]]), self._caches)
            for cache in self._caches:
                cache.offset = shared
        rests = [ids[shared:] for ids in prompts]
        share = sum(map(len, rests)) // lane_count() + max(map(len, rests), default=0)  # of a lane: equal shares
        rest = batch_sequences(rests, tokens_per_batch=min(REST_TOKENS, share))
        self.rest = Walk(model, rest, self._caches)
        self.shared = shared

    @property
    def layer(self) -> int:
        """The block whose input the prompts stand at."""
        return self.rest.layer

    def run_start(self, block: int, hidden: mx.array) -> mx.array:
        """Run the start, ``[row, token, hidden]``, through a block, which keeps what the rest will attend to."""
        assert self.start is not None and self._caches is not None
        self._caches[block].offset = 0
        try:
            return self.start.run_block(0, hidden, block)
        finally:
            self._caches[block].offset = self.shared

    def move_to(self, layer: int) -> None:
        """Advance until standing at the input of block ``layer``."""
        while self.layer < layer:
            if self.start is not None:
                self.start.hidden[0] = self.run_start(self.layer, self.start.hidden[0])
            self.rest.advance()
