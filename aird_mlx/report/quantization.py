"""What quantization did to each tensor."""

from __future__ import annotations

from dataclasses import dataclass, field

from aird_mlx.report.figures import SCHEMA


@dataclass(frozen=True)
class TensorQuantization:
    """One quantized module.

    Attributes:
        name: its dotted path in the network.
        mode, bits, group_size: how it is stored.
        weights: how many it has.
        zeros: share of exact zeros before.
        zeros_kept: share of those that are exactly zero still, 1 where there were none.
        error: root of the sum of squared errors on the other weights, relative to their own; None where a method
            rescales what it stores.
    """

    name: str
    mode: str
    bits: int
    group_size: int
    weights: int
    zeros: float
    zeros_kept: float
    error: float | None


@dataclass(frozen=True)
class QuantizationReport:
    """What quantization did; ``bits_per_weight`` counts scales, biases and what stayed as it was.

    Attributes:
        mode: how, in the words of the options; of a learned method its name.
        bits, group_size: what modules get that no recipe names.
        tensors: every quantized module in the network's order.
        skipped: modules left as they were: asked for by the recipe, or of a width their groups do not divide.
        model, written: set where a model was quantized from a folder and written to one.
        sizes: bytes on disk, see `PruningReport`.
    """

    mode: str
    bits: int
    group_size: int
    bits_per_weight: float
    tensors: list[TensorQuantization]
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    model: str = ""
    written: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def zeros_kept(self) -> float:
        """Of all zeros there were, the share that is exactly zero still; 1 where there were none."""
        zeros = sum(one.zeros * one.weights for one in self.tensors)
        kept = sum(one.zeros * one.weights * one.zeros_kept for one in self.tensors)
        return kept / zeros if zeros else 1.0
