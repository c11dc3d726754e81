"""Blocks that are read when they run and let go of afterwards: a model may be larger than the memory.

MLX reads a safetensors file lazily: an array occupies memory from its first use until nothing refers to it. Here the
arrays of a block are replaced by unread ones once the block has run, so that at most the *held* block (where a walk
stands) and the one that runs are in memory. Everything that runs a model works on such a one; each forward pass reads
the files once. What is outside the blocks (embedding, last norm, head) stays until a walk has embedded its tokens.
"""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn

if TYPE_CHECKING:
    from aird_mlx.model.chat_model import ChatModel

# The C library of Linux keeps freed pieces of up to 32 MB, unless told to give back those of this size.
GIVEN_BACK = 1 << 20
# What is outside the blocks, beside their numbers: the last of the parts.
OUTSIDE = -1
# Unread arrays keep their file open, and macOS allows 256 files unless asked.
OPEN_FILES = 4096


class BlockStream:
    """Reads and lets go of the blocks of one model, and of what is outside them (`OUTSIDE`, for `release`).

    Args:
        model: nothing of its network is read yet. The call of each block lets go of it again unless it is held.
        reopen: the same model once more, nothing of it read yet.
    """

    def __init__(self, model: ChatModel, reopen: Callable[[], ChatModel]) -> None:
        _allow_open_files()
        _give_back_freed()
        self._blocks = list(model.blocks)
        self._reopen = reopen
        self._places = _parts_of(model)
        self._spare: list[dict[str, mx.array] | None] = []
        self._written: dict[int, tuple[Path, str]] = {}
        self._held: int | None = None
        for index, block in enumerate(self._blocks):
            block.__class__ = _streamed(type(block))  # type: ignore[arg-type]
            block.after_run = partial(self._after_run, index)

    def hold(self, block: int) -> None:
        """Keep what is read of one block, instead of the one held before, until it is released."""
        if self._held not in (None, block):
            self.release(self._held)
        self._held = block

    def is_held(self, block: int) -> bool:
        """Whether the block stays in memory when it has run."""
        return self._held == block

    def release(self, block: int) -> None:
        """Put unread arrays in place of the block's own, or of `OUTSIDE`; changes that were not written are lost."""
        if self._held == block:
            self._held = None
        places = self._places[block]
        for name, array in self._unread(block).items():
            module, key = places[name]
            module[key] = array
        mx.clear_cache()

    def put_back(self, block: int) -> None:
        """`release` a block that may be held, and is still held then."""
        is_held = self.is_held(block)
        self.release(block)
        self._held = block if is_held else self._held

    def _after_run(self, block: int, output: Any, arguments: Sequence[Any]) -> None:
        if not self.is_held(block):
            states = [one.state for one in arguments if hasattr(one, "state")]
            mx.eval(output, states)  # what is not computed yet would keep the weights
            self.release(block)

    def redirect(self, block: int, path: Path, prefix: str) -> None:
        """Read the block from another file from now on, where its arrays' names start with ``prefix``."""
        self._places[block] = _places_of(self._blocks[block])
        self._written[block] = (path, prefix)
        self.put_back(block)

    def _unread(self, block: int) -> Mapping[str, mx.array]:
        if block in self._written:
            path, prefix = self._written[block]
            arrays = mx.load(str(path))
            assert isinstance(arrays, dict)
            return {name: arrays[prefix + name] for name in self._places[block]}
        # One reopening serves each block once: a pass over all blocks reopens the files once.
        if not self._spare or self._spare[block] is None:
            self._spare = [
                {name: module[key] for name, (module, key) in part.items()} for part in _parts_of(self._reopen())
            ]
        found, self._spare[block] = self._spare[block], None
        assert found is not None
        return found


def _parts_of(model: ChatModel) -> list[dict[str, tuple[Any, str]]]:
    """The places of every block, and at last of what is outside them."""
    inside = f"{model.architecture.blocks}."
    outside = {name: place for name, place in _arrays_in(model.network) if not name.startswith(inside)}
    return [*map(_places_of, model.blocks), outside]


def _places_of(block: nn.Module) -> dict[str, tuple[Any, str]]:
    """By name within the block, the module that has an array and the key it has it under."""
    return dict(_arrays_in(block))


def _arrays_in(block: nn.Module) -> Iterator[tuple[str, tuple[Any, str]]]:
    for path, module in block.named_modules():
        for key, value in module.items():
            if isinstance(value, mx.array) and not key.startswith("_"):
                yield f"{path}.{key}" if path else key, (module, key)


@cache
def _streamed(plain: type[nn.Module]) -> type[nn.Module]:
    """The same module, but once its output is computed, ``after_run`` is called with it and the arguments."""

    class StreamedBlock(plain):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            output = super().__call__(*args, **kwargs)
            self.after_run(output, (*args, *kwargs.values()))
            return output

    return StreamedBlock


def _allow_open_files() -> None:
    least, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if most == resource.RLIM_INFINITY else min(OPEN_FILES, most)
    if least < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _give_back_freed() -> None:
    if mx.default_device() == mx.Device(mx.cpu):
        mx.set_cache_limit(0)  # of 32 MB freed, which save little here; a GPU's are worth keeping
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(-3, GIVEN_BACK)  # M_MMAP_THRESHOLD
