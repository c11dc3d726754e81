"""A chat model as this project sees it: blocks, linears, and taps on them.

A *tap* stands in for a block or a linear while a ``with`` statement lasts, sees what passes, and is gone afterwards
even when the body raises. Nothing here re-implements a forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import compute_bits_per_weight

from aird_mlx.architectures import Architecture
from aird_mlx.model.stream import BlockStream

Call = Callable[..., mx.array]


class Tap:
    """Stands in for a module and hands each call to ``call``; every other attribute is the module's own."""

    def __init__(self, module: nn.Module, call: Call) -> None:
        self._module = module
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> mx.array:
        return self._call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@dataclass
class ChatModel:
    """A loaded model with its tokenizer.

    Attributes:
        network: mlx-lm's model. Changed in place only by verbs (`prune_model`, `fold`).
        tokenizer: mlx-lm's wrapper around the Hugging Face tokenizer; has a chat template.
        config: the model's config.json, without ``quantization`` when the weights were dequantized.
        name: what the user called it.
        folder: where its files lie.
        architecture: its row in the table.
        notes: what loading did that the user should know.
        stream: reads and lets go of the blocks where they are not all in memory.
    """

    network: nn.Module
    tokenizer: TokenizerWrapper
    config: dict[str, Any]
    name: str
    folder: Path
    architecture: Architecture
    notes: list[str] = field(default_factory=list)
    stream: BlockStream | None = None

    @property
    def blocks(self) -> list[nn.Module]:
        """The residual blocks in order (the network's own list: replacing an element changes the model)."""
        blocks = submodule(self.network, self.architecture.blocks)
        assert isinstance(blocks, list)
        return blocks

    def block_of(self, path: str) -> int | None:
        """Which block a dotted path in the network leads into, None for none."""
        inside = path.removeprefix(f"{self.architecture.blocks}.")
        return int(inside.partition(".")[0]) if inside != path else None

    def linear(self, block: int, name: str) -> nn.Linear:
        """The linear ``name`` (e.g. ``mlp.down_proj``) of block ``block``."""
        linear = submodule(self.blocks[block], name)
        assert isinstance(linear, nn.Linear)
        return linear

    def linears(self) -> Iterator[tuple[int, str, nn.Linear]]:
        """Every prunable linear as (block, name, linear), in data order."""
        for block in range(len(self.blocks)):
            for name in self.architecture.linear_names:
                yield block, name, self.linear(block, name)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return int(self.config["hidden_size"])

    @property
    def context_length(self) -> int | None:
        """Most tokens of prompt and answer together, None if the config names no limit."""
        return context_length(self.config)

    @property
    def parameters(self) -> int:
        """How many weights the model has."""
        return sum(array.size for _, array in tree_flatten(self.network.parameters()))

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight, as mlx-lm counts them."""
        return float(compute_bits_per_weight(self.network))

    def hold(self, block: int) -> None:
        """Keep a block in memory while a walk stands at it; the others are only read as they run, if not all fit."""
        if self.stream is not None:
            self.stream.hold(block)

    def release(self, block: int) -> None:
        """Let go of a block's weights if not all blocks fit; what was changed in them and not written is lost."""
        if self.stream is not None:
            self.stream.release(block)

    @contextmanager
    def block_taps(self, call: Callable[[int, nn.Module, tuple[Any, ...], dict[str, Any]], mx.array]) -> Iterator[None]:
        """Replace every block by ``call(block index, block, args, kwargs)`` while the context lasts."""
        blocks = self.blocks
        originals = list(blocks)
        try:
            for index, block in enumerate(originals):
                blocks[index] = Tap(block, _bind(call, index, block))
            yield
        finally:
            blocks[:] = originals

    @contextmanager
    def linear_taps(self, block: int, calls: Mapping[str, Callable[[nn.Module, mx.array], mx.array]]) -> Iterator[None]:
        """Replace linears of one block by ``call(linear, input) -> output`` while the context lasts."""
        originals: list[tuple[nn.Module, str, nn.Module]] = []
        try:
            for name, call in calls.items():
                owner_name, _, attribute = name.rpartition(".")
                owner = submodule(self.blocks[block], owner_name) if owner_name else self.blocks[block]
                linear = getattr(owner, attribute)
                originals.append((owner, attribute, linear))
                owner[attribute] = Tap(linear, _bind(call, linear))
            yield
        finally:
            for owner, attribute, linear in reversed(originals):
                owner[attribute] = linear

    def sparsity(self) -> float:
        """Share of exact zeros among the prunable linears' weights, counted."""
        zeros, total = 0, 0
        for block in range(len(self.blocks)):
            for name in self.architecture.linear_names:
                weight = self.linear(block, name).weight
                zeros += int((weight == 0).sum().item())
                total += weight.size
            self.release(block)
        return zeros / total


def context_length(config: Mapping[str, Any]) -> int | None:
    """Most tokens of prompt and answer together, None if the config names no limit; some nest it in ``text_config``."""
    found = config.get("max_position_embeddings", (config.get("text_config") or {}).get("max_position_embeddings"))
    return found if isinstance(found, int) else None


def submodule(module: Any, path: str) -> Any:
    """What is at a dotted path of names in a module."""
    for name in path.split("."):
        module = getattr(module, name)
    return module


def _bind(call: Callable[..., mx.array], *leading: Any) -> Call:
    if len(leading) == 2:
        index, block = leading
        return lambda *args, **kwargs: call(index, block, args, kwargs)
    return lambda value: call(leading[0], value)
