"""What one run of ``repair`` measured and wrote."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from aird_mlx.report.figures import SCHEMA, RefusalRates, Utility


@dataclass(frozen=True)
class DirectionFigures:
    """A refusal direction as one stage shows it.

    Attributes:
        layer: input of this block.
        position: negative index into the post-instruction tokens, -1 = last prompt token.
        cosine_to_dense: cosine with the dense model's direction at the dense model's own (layer, position).
        norm: length of the difference of means.
        bypass, induce, kl: selection scores (Arditi et al.), None where only the cosine was measured.
        survived: whether a candidate passed the selection's filters.
        calibrated_cosine: the same across halves of the prompts, see `PlaceFigures`; None where it is undefined.
    """

    layer: int
    position: int
    cosine_to_dense: float | None
    norm: float
    bypass: float | None = None
    induce: float | None = None
    kl: float | None = None
    survived: bool | None = None
    calibrated_cosine: float | None = None


@dataclass(frozen=True)
class ParityFigures:
    """What llama.cpp did with an exported file, beside MLX; None where it was not checked."""

    token_ids_equal: bool
    argmax_agreement: float
    mean_kl: float
    tokens: int


@dataclass(frozen=True)
class Stage:
    """One row of the result: ``dense``, ``compressed``, ``repaired`` or ``exported:<type>``."""

    name: str
    refusal: RefusalRates
    utility: Utility | None
    sparsity: float
    bits_per_weight: float
    direction: DirectionFigures | None = None
    parity: ParityFigures | None = None
    not_checked: str | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RepairFigures:
    """How the repair was made; ``rank`` None = not low-rank, ``sparsity_lost`` counted in the weights."""

    rule: str
    layers: list[int]
    strength: float
    rank: int | None
    sparsity_lost: float
    ridge: float | None = None
    why: str = ""
    tried: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Gate:
    """A bar the result had to pass. ``kind`` is ``safety`` (exit code 3) or ``utility`` (exit code 4)."""

    name: str
    kind: str
    passed: bool
    value: float
    limit: float
    meaning: str = ""


@dataclass(frozen=True)
class Report:
    """Everything one run of ``repair`` measured and wrote."""

    model: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    direction: DirectionFigures
    stages: list[Stage]
    repair: RepairFigures
    gates: list[Gate]
    written: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    schema: int = SCHEMA

    def stage(self, name: str) -> Stage:
        """The stage called ``name``. Raises KeyError when the run had none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    @property
    def exit_code(self) -> int:
        """0 when every gate passed, 3 when a safety gate failed, else 4."""
        failed = {gate.kind for gate in self.gates if not gate.passed}
        if "safety" in failed:
            return 3
        return 4 if failed else 0
