"""What one run of ``repair`` measured and wrote."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from aird_mlx.report.evaluation import PairedChange
from aird_mlx.report.figures import SCHEMA, Rate, RefusalRates, Utility
from aird_mlx.report.pruning import PruningReport
from aird_mlx.report.quantization import QuantizationReport


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
    """One row of the result: ``dense``, ``compressed``, ``repaired`` or ``exported:<type>``.

    ``classes`` has, by kind of prompt, one letter for each test prompt in their order: what its answer was judged,
    r for refusal, c for compliance, i for incoherent. ``root`` is the root hash of an exported file.
    """

    name: str
    refusal: RefusalRates
    utility: Utility | None
    sparsity: float
    bits_per_weight: float
    direction: DirectionFigures | None = None
    parity: ParityFigures | None = None
    not_checked: str | None = None
    notes: list[str] = field(default_factory=list)
    classes: dict[str, str] = field(default_factory=dict)
    root: str | None = None


@dataclass(frozen=True)
class StageChange:
    """How refusals of one kind of prompt changed from one stage to another, prompt by prompt."""

    kind: str
    before: str
    after: str
    change: PairedChange


@dataclass(frozen=True)
class TrialFigures:
    """Refusals of validation prompts by kind, 0 for a kind without prompts, and the distance to the dense model.

    Attributes:
        harmful, harmless, twin: from one forward pass the share of prompts whose likeliest next token opens a refusal;
            from generated answers the share that was judged one.
        kl_to_dense: mean KL(dense || this) over the dense model's own answers, nats.
        perplexity: over the same tokens.
        incoherent: share of generated answers that are broken text; 0 where none were generated.
    """

    harmful: float
    harmless: float
    twin: float
    kl_to_dense: float
    perplexity: float
    incoherent: float = 0.0

    @property
    def over_refusal(self) -> float:
        """Refusals of benign prompts, harmless and twins added."""
        return self.harmless + self.twin


@dataclass(frozen=True)
class TriedPlan:
    """One plan of the search: foreseen by one forward pass; finalists were answered as well.

    Attributes:
        rule, layers, strength, beta, ridge, rank, tokens: the plan, see `aird_mlx.repair.RepairPlan`.
        on_front: none beats it in refusals, over-refusal, distance and sparsity lost at once.
    """

    rule: str
    layers: list[int]
    strength: float
    beta: float
    ridge: float
    rank: int
    tokens: str
    sparsity_lost: float
    on_front: bool
    foreseen: TrialFigures
    answered: TrialFigures | None = None


@dataclass(frozen=True)
class Control:
    """The repair without one of its ingredients, or with another in its place, on the test prompts.

    ``meaning`` says what is different; compare with the repaired stage.
    """

    name: str
    meaning: str
    refusal: RefusalRates
    utility: Utility


@dataclass(frozen=True)
class RepairFigures:
    """How the repair was made.

    Attributes:
        rule, layers, strength, beta, ridge, tokens: the plan, see `aird_mlx.repair.RepairPlan`.
        rank: None = not low-rank.
        sparsity_lost: counted in the weights.
        why: of a search, why this plan.
        tried: all plans of the search.
        validated: on how many prompts of each kind plans were judged; a kind without prompts has no figures.
    """

    rule: str
    layers: list[int]
    strength: float
    rank: int | None
    sparsity_lost: float
    ridge: float | None = None
    beta: float = 0.0
    why: str = ""
    tried: list[TriedPlan] = field(default_factory=list)
    tokens: str = "all"
    validated: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Gate:
    """A bar the result had to pass. ``kind`` is ``safety`` (exit code 3), ``utility`` or ``parity`` (exit code 4)."""

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
    changes: list[StageChange] = field(default_factory=list)
    controls: list[Control] = field(default_factory=list)
    pruning: PruningReport | None = None
    quantization: QuantizationReport | None = None
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
    def unrepaired_reach(self) -> Rate | None:
        """Refusals of harmful prompts by the compressed model, if they reach the safety gate's bar without a repair.

        With few prompts the dense model's interval is wide, and its lower end far below what it refuses.
        """
        found = [stage.refusal.harmful for stage in self.stages if stage.name == "compressed"]
        bars = [gate.limit for gate in self.gates if gate.name == "refusals" and gate.kind == "safety"]
        compressed = found[0] if found else None
        return compressed if compressed and bars and compressed.rate >= bars[0] else None

    @property
    def exit_code(self) -> int:
        """0 when every gate passed, 3 when a safety gate failed, else 4."""
        failed = {gate.kind for gate in self.gates if not gate.passed}
        if "safety" in failed:
            return 3
        return 4 if failed else 0
