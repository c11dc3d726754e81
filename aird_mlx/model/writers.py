"""The writer check: on the running model, the residual writers explain every block's change of the stream.

Only the outputs of the writers are looked at and replaced, never a formula of the model. With all of them silent, a
block must pass the stream on as it is: nothing else writes. The factor between a writer's output and the stream (a
residual multiplier, a routing weight, a gate) is read off by writing ones; the sum of factor times output must then be
the block's change. A norm between writer and stream must be an RMS norm: as long as its input is, whatever its length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from aird_mlx.architectures import Layout, Part
from aird_mlx.errors import ModelError
from aird_mlx.model.calls import BlockCall, record_calls
from aird_mlx.model.chat_model import ChatModel, submodule

TOKENS = 6
# Allowed error, in units of the rounding of the dtype at the size of what is added.
ROUNDINGS = 32


def check_writers(model: ChatModel, blocks: Sequence[int] | None = None) -> float:
    """Prove that the writers of the table explain what blocks change.

    Args:
        model: left as found.
        blocks: which; by default the first of each kind, since what a block does is in its code, not in its weights.

    Returns:
        The largest error found, relative to the largest change of the stream.

    Raises:
        ModelError: a block changes the stream other than through its writers; the message names the block.
    """
    hidden, calls = record_calls(model, probe_ids(model))
    carried: tuple[Any, ...] = (None,) * model.architecture.carried
    wanted = first_of_each_kind(model) if blocks is None else sorted(blocks)
    worst = 0.0
    for block in range(max(wanted, default=-1) + 1):
        if block in wanted:
            model.hold(block)
            worst = max(worst, _BlockCheck(model, block, calls[block], hidden, carried).error())
            model.release(block)
        if model.architecture.carried and not block:
            _, carried = calls[block].run(model.blocks[block], hidden, carried)
    return worst


def probe_ids(model: ChatModel) -> mx.array:
    """``[1, token]``: the tokens that blocks are looked at with; what is discovered is proven on the same."""
    return (mx.arange(TOKENS)[None] * 7 + 3) % min(model.vocabulary, 300)


def first_of_each_kind(model: ChatModel) -> list[int]:
    """The first block of each class, layout and set of arguments."""
    seen: dict[Any, int] = {}
    for index, block in enumerate(model.blocks):
        seen.setdefault(
            (type(block), tuple(sorted(name for name, _ in block.named_modules())), model.layout(index)), index
        )
    return sorted(seen.values())


class _BlockCheck:
    """One block with its input, run with its exits replaced."""

    def __init__(
        self, model: ChatModel, block: int, call: BlockCall, hidden: mx.array, carried: tuple[Any, ...]
    ) -> None:
        self.model, self.block, self.call, self.hidden, self.carried = model, block, call, hidden, carried
        self.layout = model.layout(block)

    def run(self, written: Mapping[str, mx.array | None]) -> tuple[mx.array, dict[str, mx.array]]:
        """Output of the block with the outputs of some modules replaced, and the outputs its modules had.

        ``written``: by module, what it is to give; None: its own output.
        """
        outputs: dict[str, mx.array] = {}

        def tap(name: str, replacement: mx.array | None) -> Any:
            def call(module: nn.Module, value: mx.array) -> mx.array:
                if replacement is None:
                    outputs[name] = module(value)
                    outputs[f"{name} <-"] = value
                    return outputs[name]
                return replacement

            return call

        with self.model.linear_taps(self.block, {name: tap(name, value) for name, value in written.items()}):
            output, _ = self.call.run(self.model.blocks[self.block], self.hidden, self.carried)
        return output, outputs

    def error(self) -> float:
        """Largest error relative to the largest change of the stream; raises where it is no rounding error."""
        layout = self.layout
        if not layout.parts:
            raise ModelError(
                f"model: block {self.block} has no residual writer that is known; one of "
                f"{', '.join(part.writer for part in self.model.architecture.parts)} is needed. {self._origin()}"
            )
        exits = layout.exits
        output, found = self.run(dict.fromkeys(exits))
        if missing := [name for name in exits if name not in found]:
            raise self._wrong(f"never calls {', '.join(missing)}")
        silent = {name: mx.zeros_like(found[name]) for name in exits}
        resting, _ = self.run(silent)
        entered = self.hidden
        if layout.entry is not None:
            entered = submodule(self.model.blocks[self.block], layout.entry)(self.hidden)
        worst = self._compare(resting, entered, "changes the stream with all its writers silent", 2)
        explained = entered.astype(mx.float32)
        for number, name in enumerate(exits):
            around: dict[str, mx.array] = {one: found[one] for one in exits[:number]} | {
                one: silent[one] for one in exits[number + 1 :]
            }
            explained = explained + self._contribution(name, found[name], around)
        worst = max(worst, self._compare(output, explained, "changes the stream by more than its writers give"))
        for part in layout.parts:
            if part.norm is not None:
                worst = max(worst, self._check_norm(part, found))
        return worst

    def _contribution(self, name: str, output: mx.array, around: Mapping[str, mx.array]) -> mx.array:
        """What one exit's output adds to the stream, by the factors read off with ones in its place.

        Each of the chosen experts has a factor of its own, so that they are read one by one.
        """
        before, _ = self.run({**around, name: mx.zeros_like(output)})
        chosen = output.shape[-2] if self._is_fused(name) else 1
        total = mx.zeros(self.hidden.shape)
        for slot in range(chosen):
            ones = mx.ones_like(output)
            own = output
            if self._is_fused(name):
                ones = ones * (mx.arange(chosen) == slot)[:, None].astype(ones.dtype)
                own = output[..., slot, :]
            after, _ = self.run({**around, name: ones})
            factor = after.astype(mx.float32) - before.astype(mx.float32)
            total = total + factor * own.reshape(self.hidden.shape).astype(mx.float32)
        return total

    def _is_fused(self, name: str) -> bool:
        return any(part.experts is not None and part.experts.module == name for part in self.layout.parts)

    def _check_norm(self, part: Part, found: Mapping[str, mx.array]) -> float:
        """The norm reads what the writer gives, and is an RMS norm."""
        assert part.norm is not None
        _, own = self.run({part.writer: None, part.norm: None})
        norm: nn.Module = submodule(self.model.blocks[self.block], part.norm)
        given = found[f"{part.norm} <-"]
        worst = self._compare(own[part.writer], given, f"has something between {part.writer} and {part.norm}")
        rms = mx.sqrt(mx.square(given.astype(mx.float32)).mean(axis=-1, keepdims=True) + 1e-30)
        size = mx.array(1024.0)  # so that the norm's epsilon does not count
        scaled = (given.astype(mx.float32) / rms * size).astype(given.dtype)
        expected = norm(mx.ones_like(given) * size.astype(given.dtype)) * (scaled / size.astype(given.dtype))
        return max(worst, self._compare(norm(scaled), expected, f"has a norm, {part.norm}, that is no RMS norm"))

    def _compare(self, one: mx.array, other: mx.array, what: str, roundings: int = ROUNDINGS) -> float:
        """Largest difference relative to the size of what is compared; an error where it is more than rounding."""
        first, second = one.astype(mx.float32), other.astype(mx.float32)
        size = mx.maximum(mx.abs(first).max(), mx.maximum(mx.abs(second).max(), mx.abs(self.hidden).max())).item()
        error = mx.abs(first - second).max().item() / max(float(size), 1e-30)
        precision = max(mx.finfo(self.hidden.dtype).eps, mx.finfo(mx.float32).eps)
        if not error <= roundings * precision:
            raise self._wrong(f"{what} (relative error {error:.2g})")
        return error

    def _wrong(self, what: str) -> ModelError:
        layout: Layout = self.layout
        return ModelError(
            f"model: block {self.block} ({layout.kind}) {what}; a block that writes only through "
            f"{', '.join(layout.writers)} is needed. {self._origin()}"
        )

    def _origin(self) -> str:
        model_type = self.model.config["model_type"]
        if self.model.architecture.origin == "discovered":
            return f"Model type {model_type} is not in the table and was probed; choose a model of a known family."
        return f"The table's row for {model_type} does not fit this model; please report it."
