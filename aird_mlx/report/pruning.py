"""What pruning did to each tensor."""

from __future__ import annotations

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
    """

    block: int
    name: str
    weights: int
    asked: float
    sparsity: float
    damping: float | None = None


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
