"""A chat model as this project sees it: blocks, linears, and taps on them.

A *tap* stands in for a block or a linear while a ``with`` statement lasts, sees what passes, and is gone afterwards
even when the body raises. Nothing here re-implements a forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import compute_bits_per_weight

from aird_mlx.architectures import Architecture, Layout, context_length
from aird_mlx.model.stream import OUTSIDE, BlockStream

LINEARS = (nn.Linear, nn.QuantizedLinear, SwitchLinear, QuantizedSwitchLinear)
QUANTIZED = (nn.QuantizedLinear, nn.QuantizedEmbedding, QuantizedSwitchLinear)
Call = Callable[..., mx.array]


class Tap:
    """Stands in for a module and hands each call to ``call``; every other attribute is the module's own.

    Attributes:
        arguments: what the call it stands for was given beside its input (fused experts: the chosen ones).
    """

    def __init__(self, module: nn.Module, call: Call, arguments: tuple[Any, ...] = ()) -> None:
        self._module = module
        self._call = call
        self.arguments = arguments

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
        kept_experts: by block, which of its mixture's original experts are left after some were removed.
        stored: by dotted path, weights that are stored otherwise than the network computes with them: it has their
            values as plain numbers.
        notes: what loading did that the user should know.
        stream: reads and lets go of the blocks where they are not all in memory.
    """

    network: nn.Module
    tokenizer: TokenizerWrapper
    config: dict[str, Any]
    name: str
    folder: Path
    architecture: Architecture
    stored: dict[str, StoredWeight] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    stream: BlockStream | None = None
    kept_experts: dict[int, list[int]] = field(default_factory=dict)
    _layouts: dict[int, Layout] = field(default_factory=dict, repr=False)

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

    def layout(self, block: int) -> Layout:
        """The parts that block ``block`` has: its linears and residual writers."""
        if block not in self._layouts:
            module = self.blocks[block]
            self._layouts[block] = self.architecture.layout(lambda name: isinstance(submodule(module, name), nn.Module))
        return self._layouts[block]

    def keep_blocks(self, kept: Sequence[int]) -> None:
        """Have only some of the blocks, in the order given."""
        self.blocks[:] = [self.blocks[block] for block in kept]
        self._layouts.clear()

    def linear(self, block: int, name: str) -> nn.Linear:
        """The linear ``name`` (e.g. ``mlp.down_proj``) of a block; of fused experts it weighs ``[expert, out, in]``."""
        linear: nn.Linear = submodule(self.blocks[block], name)
        assert is_linear(linear)
        return linear

    def linears(self) -> Iterator[tuple[int, str, nn.Linear]]:
        """Every prunable linear as (block, name, linear), in data order."""
        for block in range(len(self.blocks)):
            for name in self.layout(block).linear_names:
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
        """Width of the residual stream, as the first writer has it."""
        writer = self.linear(0, self.layout(0).writers[0])
        return int(writer.weight.shape[-2])

    @property
    def size_bytes(self) -> int:
        """Of the weights, as the network has them."""
        return sum(array.nbytes for _, array in tree_flatten(self.network.parameters()))

    @property
    def prunable_weights(self) -> int:
        """How many weights the prunable linears have."""
        return sum(linear.weight.size for _, _, linear in self.linears())

    @property
    def vocabulary(self) -> int:
        """How many tokens it has an embedding for."""
        return int(submodule(self.network, self.architecture.embedding).weight.shape[0])

    @property
    def context_length(self) -> int | None:
        """Most tokens of prompt and answer together, None if the config names no limit."""
        return context_length(self.config)

    @cached_property
    def attends_only(self) -> bool:
        """Whether what blocks remember of earlier tokens is keys and values alone."""
        caches = make_prompt_cache(self.network)
        return len(caches) == len(self.blocks) and all(isinstance(one, KVCache | RotatingKVCache) for one in caches)

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

    def hold(self, block: int) -> None:
        """Keep a block in memory while a walk stands at it; the others are only read as they run, if not all fit."""
        if self.stream is not None:
            self.stream.hold(block)

    def release(self, block: int) -> None:
        """Let go of a block's weights if not all blocks fit; what was changed in them and not written is lost."""
        if self.stream is not None:
            self.stream.release(block)

    def release_outside(self) -> None:
        """Let go of embedding, last norm and head until they are used again, if not all blocks fit."""
        self.release(OUTSIDE)

    @contextmanager
    def block_taps(self, call: Callable[[int, nn.Module, tuple[Any, ...], dict[str, Any]], Any]) -> Iterator[None]:
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
        """Replace linears of one block by ``call(linear, input) -> output`` while the context lasts.

        What else a module is called with (fused experts: which are chosen) goes on to it, not to ``call``.
        """
        placed: list[tuple[nn.Module, str, nn.Module, Call]] = []
        for name, call in calls.items():
            owner_name, _, attribute = name.rpartition(".")
            owner = submodule(self.blocks[block], owner_name) if owner_name else self.blocks[block]
            linear = getattr(owner, attribute)
            placed.append((owner, attribute, linear, _bind(call, linear)))
        try:
            for owner, attribute, linear, call in placed:
                owner[attribute] = Tap(linear, call)
            yield
        finally:
            for owner, attribute, linear, _ in placed:
                owner[attribute] = linear

    @contextmanager
    def differentiable(self) -> Iterator[None]:
        """Blocks run as in training while the context lasts: without kernels of recurrences, which know no gradient."""
        was_training = getattr(self.network, "training", False)  # a model of mlx-lm forgets to set it
        try:
            self.network.train()
            yield
        finally:
            self.network.train(was_training)

    def sparsity(self) -> float:
        """Share of exact zeros among the prunable linears' weights, counted."""
        zeros, total = 0, 0
        for block in range(len(self.blocks)):
            for name in self.layout(block).linear_names:
                weight = self.linear(block, name).weight
                zeros += int((weight == 0).sum().item())
                total += weight.size
            self.release(block)
        return zeros / total


def submodule(module: Any, path: str) -> Any:
    """What a dotted path names, lists by number; None where there is nothing."""
    for name in path.split("."):
        module = (
            (module[int(name)] if name.isdigit() else None) if isinstance(module, list) else getattr(module, name, None)
        )
        if module is None:
            return None
    return module


def is_linear(module: Any) -> bool:
    """Whether it multiplies with a weight ``[out, in]`` or, of fused experts, ``[expert, out, in]``."""
    return isinstance(module, LINEARS)


def _bind(call: Callable[..., mx.array], *leading: Any) -> Call:
    if len(leading) == 2:
        index, block = leading
        return lambda *args, **kwargs: call(index, block, args, kwargs)
    (linear,) = leading

    def tapped(value: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        if not args and not kwargs:
            return call(linear, value)
        return call(Tap(linear, lambda given: linear(given, *args, **kwargs), args), value)

    return tapped
