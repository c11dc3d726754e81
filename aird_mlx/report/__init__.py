"""Results as frozen dataclasses, and their way to JSON and back.

The keys are a contract that scripts read (``schema`` counts its versions). Rates are shares of prompts that the
model *refused*; ``sparsity`` is the share of exact zeros counted in the weights themselves. This package knows
nothing about models or terminals.
"""

from aird_mlx.report.adapter import AdapterCheck, AdapterReport
from aird_mlx.report.direction import ComparisonReport, DirectionReport, PlaceFigures, ScoredDirection
from aird_mlx.report.evaluation import (
    AnswerRates,
    AskedSet,
    Evaluation,
    JudgeFigures,
    MultipleChoiceFigures,
    PairedChange,
    SetChange,
    TaskScore,
)
from aird_mlx.report.figures import SCHEMA, Estimate, Rate, RefusalRates, Utility
from aird_mlx.report.guard import CanaryFigures, Check, SelfTest, Signing, Verification
from aird_mlx.report.inspection import BlockKind, Inspection, StageSupport
from aird_mlx.report.pruning import PruningReport, TensorSparsity, zeros_among
from aird_mlx.report.quantization import QuantizationReport, TensorQuantization
from aird_mlx.report.repair import (
    Control,
    DirectionFigures,
    Gate,
    ParityFigures,
    RepairFigures,
    Report,
    Stage,
    StageChange,
    TrialFigures,
    TriedPlan,
)
from aird_mlx.report.text import from_json, read_result, to_json

__all__ = [
    "SCHEMA",
    "AdapterCheck",
    "AdapterReport",
    "AnswerRates",
    "AskedSet",
    "BlockKind",
    "CanaryFigures",
    "Check",
    "ComparisonReport",
    "Control",
    "DirectionFigures",
    "DirectionReport",
    "Estimate",
    "Evaluation",
    "Gate",
    "Inspection",
    "JudgeFigures",
    "MultipleChoiceFigures",
    "PairedChange",
    "ParityFigures",
    "PlaceFigures",
    "PruningReport",
    "QuantizationReport",
    "Rate",
    "RefusalRates",
    "RepairFigures",
    "Report",
    "ScoredDirection",
    "SelfTest",
    "SetChange",
    "Signing",
    "Stage",
    "StageChange",
    "StageSupport",
    "TaskScore",
    "TensorQuantization",
    "TensorSparsity",
    "TrialFigures",
    "TriedPlan",
    "Utility",
    "Verification",
    "from_json",
    "read_result",
    "to_json",
    "zeros_among",
]
