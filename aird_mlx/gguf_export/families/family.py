"""What one family needs beyond what all share: its row of the table.

Everything is data or a small function of the hyperparameters; no weight is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aird_mlx.gguf_export.families.checks import Requirement
from aird_mlx.gguf_export.hyperparameters import Hyperparameters, Key
from aird_mlx.gguf_export.pieces import Operation

ATTENTION = ("attn_norm.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight")
GATED = ("ffn_gate.weight", "ffn_up.weight", "ffn_down.weight")
PLAIN = ("ffn_up.weight", "ffn_down.weight")
EXPERTS = ("ffn_gate_inp.weight", "ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight")
BLOCK = (*ATTENTION, "ffn_norm.weight", *GATED)
AFTER = ("post_attention_norm.weight", "post_ffw_norm.weight")  # norms between what a block computes and the stream
HEAD_NORMS = ("attn_q_norm.weight", "attn_k_norm.weight")


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        architecture: llama.cpp's word, or a function that chooses it by the config.
        keys: GGUF keys in file order.
        tensors: operations from the folder's tensors to Hugging Face's, see `pieces`.
        block: tensors that every block must have; or a dict from kind of block to them.
        may: tensors that a block may have besides, and the biases of all its weights.
        kinds: the kind of each block, for hybrids; None: all alike.
        outer: tensors outside the blocks that must be there, besides the embedding.
        shapes: what differs from `tensors.SHAPES`; an empty tuple: not checked.
        activations: what llama.cpp computes; None: not told by the config.
        scalings: rope scalings that llama.cpp computes as MLX does.
        checks: functions that refuse what has no equal.
        limits: where llama.cpp will differ, one sentence each.
        extra: tensors made from the config: name to float32 array.
    """

    architecture: str | Callable[[Mapping[str, Any]], str]
    keys: tuple[Key, ...]
    tensors: tuple[Operation, ...] = ()
    block: tuple[str, ...] | Mapping[str, tuple[str, ...]] = BLOCK
    may: tuple[str, ...] = ()
    kinds: Callable[[Hyperparameters], Sequence[str]] | None = None
    outer: tuple[str, ...] = ("output_norm.weight",)
    shapes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    activations: tuple[str, ...] | None = ("silu", "swish")
    scalings: tuple[str, ...] = ("default", "linear", "yarn")
    checks: tuple[Requirement, ...] = ()
    limits: Callable[[Hyperparameters], list[str]] = lambda _: []
    extra: Callable[[Hyperparameters], dict[str, Any]] = lambda _: {}

    def block_kinds(self, hyperparameters: Hyperparameters) -> Sequence[str]:
        """The kind of each block."""
        return [""] * hyperparameters.blocks if self.kinds is None else self.kinds(hyperparameters)

    def needs(self, kind: str) -> tuple[str, ...]:
        """What a block of this kind must have."""
        return self.block if isinstance(self.block, tuple) else self.block.get(kind, ())

    def has_place(self, kind: str, inner: str) -> bool:
        """Whether llama.cpp looks for this tensor in a block of this kind."""
        known = (*self.needs(kind), *self.may)
        return inner in known or (inner.endswith(".bias") and f"{inner[:-5]}.weight" in known)
