"""What a block is made of: parts that read the residual stream, pass data through linears, and write to it.

    stream --+-- norm -- linears ... writer -- (norm) -- (scale, routing weights) --+--> stream

A row of the table lists the parts that blocks of a model type *may* have; a block's `Layout` is those it does have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

Names = tuple[str, ...]


@dataclass(frozen=True)
class Experts:
    """How a mixture chooses among its experts, which are fused in one weight ``[expert, out, in]`` per linear.

    Attributes:
        module: the module that holds them; it is called with tokens and the experts chosen for each.
        router: what is sliced along its first axis when experts are removed (weights and biases of the router).
        counts: attributes of the block's modules that hold the number of experts.
        config: the key of config.json that does.
        chosen: the key of config.json with how many experts a token passes.
        groups: the key with the number of groups that routers choose from first, if there is one.
    """

    module: str
    router: Names
    counts: Names = ()
    config: str = "num_experts"
    chosen: str = "num_experts_per_tok"
    groups: str | None = None


@dataclass(frozen=True)
class Part:
    """One part of a block.

    Attributes:
        kind: ``attention``, ``mlp``, ``experts``, ``shared experts``, ``ssm``, ``recurrence`` or ``convolution``.
        linears: groups of prunable linears in data order; members of a group share their input. The last one writes.
        norm: the RMS norm between the writer and the stream, where there is one.
        experts: of a mixture; its linears are those of ``experts.module``.
        kept: linears that are never pruned: routers, and the small ones that set a recurrence's gates and steps.
    """

    kind: str
    linears: tuple[Names, ...]
    norm: str | None = None
    experts: Experts | None = None
    kept: Names = ()

    @property
    def linear_names(self) -> Names:
        """All prunable linears, in data order."""
        return tuple(name for group in self.linears for name in group)

    @property
    def writer(self) -> str:
        """The linear whose output goes to the stream."""
        return self.linears[-1][-1]

    @property
    def exit(self) -> str:
        """The module whose output, times a scale or routing weights, is added to the stream.

        The norm after the writer, the module of fused experts (``[..., chosen expert, hidden]``), or the writer itself.
        """
        if self.norm is not None:
            return self.norm
        if self.experts is not None and self.writer.startswith(self.experts.module + "."):
            return self.experts.module
        return self.writer

    def present(self, has: Callable[[str], bool]) -> Part | None:
        """This part without the linears a block lacks; None if it lacks them all."""
        groups = tuple(tuple(name for name in group if has(name)) for group in self.linears)
        groups = tuple(group for group in groups if group)
        if not groups:
            return None
        return replace(self, linears=groups, kept=tuple(name for name in self.kept if has(name)))


@dataclass(frozen=True)
class Layout:
    """The parts one block has, in data order.

    Attributes:
        parts: see `Part`.
        entry: a module the stream itself passes when it enters the block (the norm of an embedding).
    """

    parts: tuple[Part, ...]
    entry: str | None = None

    @property
    def kind(self) -> str:
        """Its parts in words.

        >>> Layout((Part("attention", (("o",),)), Part("mlp", (("down",),)))).kind
        'attention + mlp'
        """
        return " + ".join(part.kind for part in self.parts)

    @cached_property
    def groups(self) -> tuple[Names, ...]:
        """Groups of prunable linears that share their input, in data order."""
        return tuple(group for part in self.parts for group in part.linears)

    @cached_property
    def linear_names(self) -> Names:
        """All prunable linears, in data order."""
        return tuple(name for group in self.groups for name in group)

    @property
    def writers(self) -> Names:
        """The linears whose output enters the residual stream."""
        return tuple(part.writer for part in self.parts)

    @property
    def exits(self) -> Names:
        """The modules whose outputs are added to the stream, in data order; see `Part.exit`."""
        return tuple(dict.fromkeys(part.exit for part in self.parts))

    @property
    def sources(self) -> Names:
        """All modules through which anything enters the stream: `exits`, and where it enters the block changed."""
        return (self.entry, *self.exits) if self.entry is not None else self.exits

    def part_of(self, name: str) -> Part:
        """The part that the linear ``name`` belongs to."""
        return next(part for part in self.parts if name in part.linear_names)

    def is_expert(self, name: str) -> bool:
        """Whether the linear is one of fused experts, ``[expert, out, in]``."""
        experts = self.part_of(name).experts
        return experts is not None and name.startswith(experts.module + ".")


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    Attributes:
        blocks: dotted path from the network to its list of blocks.
        embedding: dotted path to the token embedding.
        parts: what its blocks may have, in data order.
        head: dotted path to the output head; where the network has none there, it is the embedding.
        entry: what the stream itself passes when it enters a block that has it; see `Layout`.
        carried: how many values each block hands to the next beside the hidden states.
        limit: what is special about it, or cannot be done, in one line.
        origin: ``table``, or ``discovered`` for a model type without a row.
    """

    blocks: str
    embedding: str
    parts: tuple[Part, ...]
    head: str = "lm_head"
    entry: str | None = None
    carried: int = 0
    limit: str = ""
    origin: str = "table"

    def layout(self, has: Callable[[str], bool]) -> Layout:
        """The parts a block has, given which modules it has."""
        found = (part.present(has) for part in self.parts)
        entry = self.entry if self.entry and has(self.entry) else None
        return Layout(tuple(part for part in found if part is not None), entry)

    def inside(self, owner: str) -> Architecture:
        """The same where the network is an attribute of another."""
        return replace(
            self, blocks=f"{owner}.{self.blocks}", embedding=f"{owner}.{self.embedding}", head=f"{owner}.{self.head}"
        )
