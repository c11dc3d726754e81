"""What pruning did to each tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from aird_mlx.report.figures import SCHEMA


@dataclass(frozen=True)
class TensorSparsity:
    """One pruned linear.

    Attributes:
        block, name: which one.
        weights: how many it has.
        asked: fraction it was to lose.
        sparsity: share of exact zeros, counted in the weights.
        damping: SparseGPT's, as a share of the Hessian's mean diagonal; None for other methods.
        before: share of exact zeros before it was pruned.
        bits: of a stored weight.
        unseen: of fused experts, those that saw too few calibration tokens to be judged by their inputs.
    """

    block: int
    name: str
    weights: int
    asked: float
    sparsity: float
    damping: float | None = None
    before: float = 0.0
    bits: int = 16
    unseen: list[int] = field(default_factory=list)


def zeros_among(tensors: Sequence[TensorSparsity]) -> float:
    """Share of exact zeros among the weights of all of them."""
    zeros = sum(round(one.sparsity * one.weights) for one in tensors)
    return zeros / max(sum(one.weights for one in tensors), 1)


@dataclass(frozen=True)
class PruningReport:
    """What pruning did; ``sparsity`` is the share of exact zeros among the pruned linears' weights, counted.

    Attributes:
        method, pattern, scope, allocation: how, in the words of the options.
        asked: fraction that was to be removed of all pruned weights.
        tensors: every pruned linear in data order.
        removed_experts: by block, as a text, the experts that ``reap`` removed.
        notes: what the user should know besides.
        model, written: set where a model was pruned from a folder and written to one.
        dropped, influence: of method ``blocks``: the blocks that are gone, and the influence each had.
        sizes: bytes on disk: ``mlx`` as written, ``gguf TYPE`` if exported, ``packed`` if zeros were (an estimate).
    """

    method: str
    pattern: str
    scope: str
    allocation: str
    asked: float
    sparsity: float
    tensors: list[TensorSparsity]
    notes: list[str] = field(default_factory=list)
    removed_experts: dict[str, list[int]] = field(default_factory=dict)
    model: str = ""
    written: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    dropped: list[int] = field(default_factory=list)
    influence: list[float] = field(default_factory=list)
    schema: int = SCHEMA

    @property
    def linears(self) -> int:
        """How many linears were pruned."""
        return len(self.tensors)

    def block_sparsity(self) -> dict[int, float]:
        """Share of exact zeros by block."""
        zeros: dict[int, float] = {}
        weights: dict[int, int] = {}
        for one in self.tensors:
            zeros[one.block] = zeros.get(one.block, 0.0) + one.sparsity * one.weights
            weights[one.block] = weights.get(one.block, 0) + one.weights
        return {block: zeros[block] / weights[block] for block in weights}
