"""A chat model as this project sees it: blocks, linears, and taps on them.

A *tap* stands in for a block or a linear while a ``with`` statement lasts, sees what passes, and is gone afterwards
even when the body raises. Nothing here re-implements a forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import compute_bits_per_weight

from aird_mlx.architectures import Architecture

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


class StoredWeight(Protocol):
    """A weight that is not stored as plain numbers, and what it may become without being stored differently.

    Attributes:
        kept: ``[out, in]`` bool, what pruning left; a weight that was merely rounded to zero is among it.
        origin: ``[out, in]``, floating: what was rounded to what is stored.
        nbytes: what it takes in a file.
    """

    @property
    def kept(self) -> mx.array: ...

    @property
    def origin(self) -> mx.array: ...

    @property
    def nbytes(self) -> int: ...

    def values(self) -> mx.array:
        """``[out, in]`` float32: what is stored."""
        ...

    def nearest(self, weight: mx.array) -> mx.array:
        """``[out, in]`` float32: the nearest to ``weight`` that could be stored."""
        ...

    def holding(self, weight: mx.array) -> StoredWeight:
        """The same with the nearest to ``weight`` in it."""
        ...


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
        stored: by dotted path, weights that are stored otherwise than the network computes with them: it has their
            values as plain numbers.
        notes: what loading did that the user should know.
    """

    network: nn.Module
    tokenizer: TokenizerWrapper
    config: dict[str, Any]
    name: str
    folder: Path
    architecture: Architecture
    stored: dict[str, StoredWeight] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def blocks(self) -> list[nn.Module]:
        """The residual blocks in order (the network's own list: replacing an element changes the model)."""
        blocks = _submodule(self.network, self.architecture.blocks)
        assert isinstance(blocks, list)
        return blocks

    def linear(self, block: int, name: str) -> nn.Linear:
        """The linear ``name`` (e.g. ``mlp.down_proj``) of block ``block``."""
        linear = _submodule(self.blocks[block], name)
        assert isinstance(linear, nn.Linear)
        return linear

    def linears(self) -> Iterator[tuple[int, str, nn.Linear]]:
        """Every prunable linear as (block, name, linear), in data order."""
        for block in range(len(self.blocks)):
            for name in self.architecture.linear_names:
                yield block, name, self.linear(block, name)

    def path(self, block: int, name: str) -> str:
        """The dotted path of a linear in the network."""
        return f"{self.architecture.blocks}.{block}.{name}"

    def kept(self, block: int, name: str) -> mx.array:
        """``[out, in]`` bool: the weights of a linear that pruning left."""
        stored = self.stored.get(self.path(block, name))
        return self.linear(block, name).weight != 0 if stored is None else stored.kept

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
        if not self.stored:
            return float(compute_bits_per_weight(self.network))
        plain = (
            array.nbytes
            for path, array in tree_flatten(self.network.parameters())
            if path.removesuffix(".weight") not in self.stored
        )
        return 8 * (sum(plain) + sum(one.nbytes for one in self.stored.values())) / self.parameters

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
                owner = _submodule(self.blocks[block], owner_name) if owner_name else self.blocks[block]
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
        for _, _, linear in self.linears():
            zeros += int((linear.weight == 0).sum().item())
            total += linear.weight.size
        return zeros / total


def context_length(config: Mapping[str, Any]) -> int | None:
    """Most tokens of prompt and answer together, None if the config names no limit; some nest it in ``text_config``."""
    found = config.get("max_position_embeddings", (config.get("text_config") or {}).get("max_position_embeddings"))
    return found if isinstance(found, int) else None


def _submodule(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


def _bind(call: Callable[..., mx.array], *leading: Any) -> Call:
    if len(leading) == 2:
        index, block = leading
        return lambda *args, **kwargs: call(index, block, args, kwargs)
    return lambda value: call(leading[0], value)
