"""What a run is about before it starts: its model and inputs, what it would do, and what a resumed run must share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from aird_mlx.compress import check_quantizable
from aird_mlx.environment import resumable_facts
from aird_mlx.gguf_export import NOT_INSTALLED, check_exportable, is_available
from aird_mlx.inputs import Inputs, gather_inputs
from aird_mlx.model import ChatModel, find_folder, load, needs_streaming
from aird_mlx.pipeline.estimate import RunEstimate, estimate_run, measure_speed
from aird_mlx.prompts import KINDS
from aird_mlx.pruning import check_pruning
from aird_mlx.settings import RepairSettings, check_places, check_settings, pruning_words, quantization_words

# What may differ when an interrupted run is resumed: where it goes and what is exported, not what is measured.
RESUMABLE = ("resume", "out", "mlx_path", "dry_run", "gguf", "controls")
# Dense, compressed, its patch, and what was written.
MODELS_IN_MEMORY = 4
GIVEN_FILES = ("harmful", "harmless", "twins", "calibration", "test_harmful", "test_harmless", "test_twins")


@dataclass(frozen=True)
class Plan:
    """What a run would do, without doing it.

    Attributes:
        estimate: seconds per stage, peak memory and room on the disk.
        streaming: whether blocks would be read as they run.
    """

    model: str
    stages: list[str]
    parameters: int
    size_bytes: int
    out: str
    notes: list[str]
    streaming: bool
    estimate: RunEstimate


def plan_repair(settings: RepairSettings) -> Plan:
    """Check the settings, the model and the prompts, and say what `repair_model` would do.

    Raises:
        AirdError: as `repair_model` would on bad input.
    """
    check_settings(settings)
    out = check_places(settings)
    inputs = inputs_of(settings)
    contrast = inputs.contrast
    dense = load_dense(settings)
    asked = sum(len(contrast.part(kind, "test")) for kind in KINDS)
    validated = sum(len(contrast.part(kind, "validate")) for kind in KINDS)
    stages = [
        f"answer {asked} test prompts with the dense model and measure its refusal direction",
        *([] if settings.prune_method == "none" else [f"prune by {settings.prune_method}, {pruning_words(settings)}"]),
        *([f"quantize: {quantization_words(settings.quantization)}"] if settings.quantization else []),
        f"repair by rule {settings.rule}, chosen on {validated} validation prompts",
        "write the MLX folder and evaluate what was written",
        *(f"export GGUF {kind}, run it in llama.cpp, and write its manifest" for kind in settings.gguf),
    ]
    notes = [*dense.notes, *inputs.notes]
    if settings.gguf and not is_available():
        notes.append(f"{NOT_INSTALLED}: exported files would not be checked")
    size = int(dense.parameters * dense.bits_per_weight / 8)
    estimate = estimate_run(settings, dense, inputs, measure_speed(dense))
    return Plan(settings.model, stages, dense.parameters, size, str(out), notes, dense.stream is not None, estimate)


def load_dense(settings: RepairSettings) -> ChatModel:
    """The model to compress, once it is sure that it can be pruned and exported as asked."""
    streaming = is_streaming(settings)
    check_settings(dataclasses.replace(settings, streaming=streaming))
    dense = load(
        settings.model,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
        streaming=streaming,
    )
    if streaming:
        dense.notes.append(
            "streaming: one block was in memory at a time, read from disk for every pass; one rule was solved and none "
            "searched for, and no patch is kept, since it is as large as the model"
        )
    if settings.prune_method != "none":
        pruning = settings.pruning
        check_pruning(dense, pruning.method, pruning.sparsity, pruning.pattern, pruning.scope, pruning.allocation)
    if settings.quantization is not None:
        check_quantizable(dense, settings.quantization)
    for outtype in settings.gguf:
        check_exportable(dense.folder, outtype)
    return dense


def is_streaming(settings: RepairSettings) -> bool:
    """Whether blocks are read as they run: as the settings say, or because the models of a run do not fit."""
    if settings.streaming is not None:
        return settings.streaming
    return needs_streaming(find_folder(settings.model, revision=settings.revision), MODELS_IN_MEMORY)


def inputs_of(settings: RepairSettings) -> Inputs:
    """The prompts and texts of the run."""
    given = {name: getattr(settings, name) for name in GIVEN_FILES}
    return gather_inputs(settings.model, settings.seed, limit=settings.limit, **given)


def fixed_facts(settings: RepairSettings, dense: ChatModel) -> dict[str, str]:
    """What must be the same when an interrupted run is resumed: settings, versions, and the contents of every file."""
    fixed = {name: value for name, value in dataclasses.asdict(settings).items() if name not in RESUMABLE}
    return resumable_facts(fixed, {name: getattr(settings, name) for name in GIVEN_FILES}, dense.folder)
