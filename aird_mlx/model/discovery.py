"""Model types without a row in the table: their blocks, linears and residual writers, found by running the model.

A writer is a linear with a way to the stream that no other linear is on: with the outputs of all linears held fixed,
the block's output still moves when that one's does. Linears that move it without being as wide as the stream are
gates and routers. What is found is only proposed; `check_writers` proves it, or refuses the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from aird_mlx.architectures import Architecture, Experts, Part
from aird_mlx.errors import ModelError
from aird_mlx.model.calls import BlockCall, record_calls
from aird_mlx.model.chat_model import ChatModel, is_linear
from aird_mlx.model.writers import first_of_each_kind, probe_ids

# What running a network in an unforeseen way raises.
SURPRISES = (ValueError, TypeError, LookupError, AttributeError, AssertionError, CycleError)


def discover(network: nn.Module, config: Mapping[str, Any]) -> Architecture:
    """A row for a network whose model type has none.

    Raises:
        ModelError: its blocks or their writers cannot be found.
    """
    model_type = config["model_type"]
    try:
        own = list(network.layers)
        blocks = next(
            path for path, value in _tree(network) if isinstance(value, list) and value and _all_in(own, value)
        )
        embedding = next(
            path for path, value in _tree(network) if isinstance(value, nn.Embedding | nn.QuantizedEmbedding)
        )
    except (StopIteration, *SURPRISES) as error:
        raise _unknown(model_type, "its blocks or its embedding are not where other models have them") from error
    heads = [path for path, value in _tree(network) if is_linear(value) and not path.startswith(blocks)]
    row = Architecture(blocks, embedding, (), head=heads[-1] if heads else "lm_head", origin="discovered")
    model = ChatModel(network, None, dict(config), model_type, Path(), row)
    try:
        hidden, calls = record_calls(model, probe_ids(model))
        found = _merged([_Probe(model, block, calls[block], hidden).parts() for block in first_of_each_kind(model)])
    except SURPRISES as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise _unknown(model_type, f"its blocks are not called with hidden states alone ({reason})") from error
    if not found:
        raise _unknown(model_type, "no linear of its blocks writes to the residual stream")
    return Architecture(blocks, embedding, found, head=row.head, origin="discovered")


def _merged(blocks: Sequence[Sequence[Part]]) -> tuple[Part, ...]:
    """The parts of several blocks, in an order that is right for all."""
    found: dict[str, Part] = {}
    order = TopologicalSorter[str]()
    for parts in blocks:
        for before, part in zip((None, *parts), parts, strict=False):
            order.add(part.writer, *([before.writer] if before else []))
            known = found.get(part.writer)
            if known is None or len(part.linear_names) > len(known.linear_names):
                found[part.writer] = part
    return tuple(found[writer] for writer in order.static_order())


def _unknown(model_type: str, what: str) -> ModelError:
    return ModelError(
        f"model: model type {model_type!r} is not in the table, and {what}; a model whose blocks add to one residual "
        "stream is needed. `aird-mlx inspect` and docs/families.md list the families that are known."
    )


def _tree(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in module.items():
        path = f"{prefix}{name}"
        yield path, value
        if isinstance(value, nn.Module):
            yield from _tree(value, f"{path}.")


def _all_in(blocks: Sequence[nn.Module], where: Sequence[Any]) -> bool:
    return len(blocks) == len(where) and all(one is other for one, other in zip(blocks, where, strict=True))


class _Probe:
    """One block, run with the outputs of its linears held fixed."""

    def __init__(self, model: ChatModel, block: int, call: BlockCall, hidden: mx.array) -> None:
        self.model, self.block, self.call, self.hidden = model, block, call, hidden
        self.modules = modules = dict(model.blocks[block].named_modules())
        # Where a linear's output is looked at: of fused experts, at the module that holds them.
        self.exits = {
            name: name.rpartition(".")[0] if isinstance(module, SwitchLinear | QuantizedSwitchLinear) else name
            for name, module in modules.items()
            if is_linear(module)
        }
        width = hidden.shape[-1]
        self.norms = [
            name for name, module in modules.items() if name and not is_linear(module) and _scale_width(module) == width
        ]
        self.inputs: dict[str, mx.array] = {}
        self.outputs: dict[str, mx.array] = {}
        self.order: list[str] = []
        self.output = self._run(dict.fromkeys([*self.exits.values(), *self.exits, *self.norms], self._keep))

    def _keep(self, name: str) -> Callable[[nn.Module, mx.array], mx.array]:
        def call(module: nn.Module, value: mx.array) -> mx.array:
            self.order.append(name)
            self.inputs[name] = value
            self.outputs[name] = module(value)
            return self.outputs[name]

        return call

    def _run(self, taps: Mapping[str, Callable[[str], Callable[[nn.Module, mx.array], mx.array]]]) -> mx.array:
        with self.model.linear_taps(self.block, {name: make(name) for name, make in taps.items()}):
            return self.call.run(self.model.blocks[self.block], self.hidden)[0]

    def _moves(self, name: str, fixed: Sequence[str]) -> bool:
        """Whether the block's output moves with that of ``name`` while those of ``fixed`` are held."""
        outputs = self.outputs | {name: self.outputs[name] + 1.0 + self.outputs[name]}

        def give(one: str) -> Callable[[nn.Module, mx.array], mx.array]:
            return lambda module, value: outputs[one]

        moved = self._run(dict.fromkeys(dict.fromkeys([*fixed, name]), give))
        return bool((mx.abs(moved - self.output).max() > 1e-6).item())

    def parts(self) -> list[Part]:
        """One part per writer, with the linears called since the last one."""
        held = [name for name in dict.fromkeys(self.exits.values()) if name in self.outputs]
        moving = [name for name in held if self._moves(name, held)]
        writing = [name for name in moving if self.outputs[name].shape[-1] == self.hidden.shape[-1]]
        experts = {self.modules[name].weight.shape[0] for name, end in self.exits.items() if end != name}
        gates = [name for name in moving if name not in writing]
        gates += [name for name in held if name not in moving and self.outputs[name].shape[-1] in experts]
        called = [name for name in self.order if name in self.exits and name not in gates]
        parts: list[Part] = []
        groups: list[list[str]] = []
        for number, name in enumerate(called):
            if groups and self._share(groups[-1][0], name):
                groups[-1].append(name)
            else:
                groups.append([name])
            end = self.exits[name]
            if end in writing and not any(self.exits[later] == end for later in called[number + 1 :]):
                norm = next(
                    (one for one in self.norms if one in self.outputs and not self._moves(end, [*held, one])), None
                )
                own = tuple(gate for gate in gates if gate.partition(".")[0] == name.partition(".")[0])
                fused = Experts(end, ()) if end != name else None
                kind = "experts" if fused else name.rpartition(".")[0] or "block"
                parts.append(Part(kind, tuple(map(tuple, groups)), norm, fused, own))
                groups = []
        return parts

    def _share(self, one: str, other: str) -> bool:
        first, second = self.inputs[one], self.inputs[other]
        return first is second or (first.shape == second.shape and mx.array_equal(first, second).item())


def _scale_width(module: nn.Module) -> int | None:
    weight = module.get("weight")
    return weight.shape[0] if isinstance(weight, mx.array) and weight.ndim == 1 else None
