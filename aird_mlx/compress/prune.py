"""Pruning alone, and written; what `aird_mlx.pipeline` prunes with is here too, so that both prune alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from aird_mlx.direction import Direction
from aird_mlx.environment import resumable_facts
from aird_mlx.errors import UsageError
from aird_mlx.gguf_export.sizes import file_sizes, packed_bytes
from aird_mlx.inputs import Inputs, gather_inputs
from aird_mlx.model import (
    ChatModel,
    ShardFolder,
    find_folder,
    load,
    loaded_bytes,
    needs_streaming,
    save,
)
from aird_mlx.prompts import KINDS
from aird_mlx.pruning import (
    CALIBRATED,
    Allocation,
    allocate_sparsity,
    check_pruning,
    check_words,
    drop_blocks,
    prune_model,
)
from aird_mlx.reference import Answers, Reference, ask_to_find
from aird_mlx.report import PruningReport
from aird_mlx.settings import Progress, PruningSettings
from aird_mlx.stages import DIRECTION_PROMPTS, measure_on_reference
from aird_mlx.workspace import (
    Workspace,
    check_new_folder,
    check_space,
    check_started,
    read_json,
    write_json,
)

# The method that leaves no mask.
DROPPING = "blocks"
NOT_FASTER = "zeros alone make the file no smaller and MLX no faster: weights are stored and multiplied as if dense"


def prune_on_reference(
    model: ChatModel,
    reference: Reference | None,
    settings: PruningSettings,
    direction: Direction | None = None,
    *,
    seed: int = 0,
    shards: ShardFolder | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PruningReport:
    """Prune ``model``, a copy of the dense one, calibrated on the dense model's own dialogues.

    Args:
        model: changed in place.
        reference: the dense model and its answers; None where nothing is calibrated.
        settings: how to prune.
        direction: the dense model's refusal direction; needed to allocate by safety.
        seed, shards, progress: see `prune_model`.
    """
    calibration = [] if reference is None else reference.calibration(calibration_kinds(settings))
    allocation: Allocation | None = None
    if settings.allocation != "uniform":
        assert reference is not None
        allocation = allocate_sparsity(
            model,
            settings.allocation,
            settings.sparsity,
            calibration,
            direction=direction,
            harmful=reference.prompts("harmful", "find", DIRECTION_PROMPTS),
            harmless=reference.prompts("harmless", "find", DIRECTION_PROMPTS),
            by_row=settings.method != "sparsegpt" and settings.scope == "row",
        )
    return prune_model(
        model,
        calibration,
        method=settings.method,
        sparsity=settings.sparsity,
        pattern=settings.pattern,
        scope=settings.scope,
        allocation=allocation,
        seed=seed,
        shards=shards,
        progress=progress,
    )


def write_pruned(
    model: str,
    out: Path,
    settings: PruningSettings | None = None,
    *,
    harmful: Path | None = None,
    harmless: Path | None = None,
    calibration: Path | None = None,
    seed: int = 0,
    streaming: bool | None = None,
    resume: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> PruningReport:
    """Prune a model and write it.

    Args:
        model: ``"demo"``, a folder, or a hub id. A quantized one is dequantized, and the report says so.
        out: the MLX folder to write; must not exist.
        settings: how to prune.
        harmful, harmless, calibration: prompts and texts instead of the built-in ones.
        seed: of the splits of the prompts, and of ``random``.
        streaming: have one block in memory at a time, and write each as it is done; None: if the model does not fit.
            What is written is the same.
        resume: go on from an interrupted streaming run with the same settings.
        revision, trust_remote_code: see `load`.
        progress: called with (stage, steps done, steps).

    Raises:
        AirdError: bad input; nothing is written.
    """
    settings = settings or PruningSettings()
    _check_settings(settings)
    check_new_folder(out, "--out")
    folder = find_folder(model, revision=revision)
    if streaming is None:
        streaming = resume or needs_streaming(folder)
    if settings.method == DROPPING and streaming:
        raise UsageError(
            "prune: method blocks with --streaming; it writes a model that is in memory. Use another method, or a "
            "machine that holds the model."
        )
    if resume:
        check_started(out)
    else:
        check_space(out, loaded_bytes(folder), "--out")
    loaded = load(model, revision=revision, trust_remote_code=trust_remote_code, streaming=streaming)
    check_pruning(loaded, *_words(settings))
    inputs = gather_inputs(model, seed, harmful=harmful, harmless=harmless, calibration=calibration)
    job = _Pruning(loaded, inputs, settings, seed, progress)
    if streaming:
        files = {"harmful": harmful, "harmless": harmless, "calibration": calibration}
        facts = dataclasses.asdict(settings) | {"model": model, "seed": seed}
        report = _prune_by_block(job, Workspace(out, resumable_facts(facts, files, folder), resume=resume))
    else:
        report = job.prune(job.ask() if job.is_asked else None)
        save(loaded, out)
    return dataclasses.replace(
        report,
        model=model,
        written={"mlx": str(out)},
        sizes=pruned_sizes(out, report),
        notes=[*loaded.notes, *report.notes, *([NOT_FASTER] if report.tensors else [])],
    )


@dataclass(frozen=True)
class _Pruning:
    """A model about to be pruned, and what with."""

    model: ChatModel
    inputs: Inputs
    settings: PruningSettings
    seed: int
    progress: Progress

    @property
    def is_asked(self) -> bool:
        """Whether the model's answers are needed."""
        method = self.settings.method
        return method == DROPPING or method in CALIBRATED or self.settings.allocation != "uniform"

    def ask(self) -> Answers:
        kinds = KINDS if self.settings.allocation == "safety" else calibration_kinds(self.settings)
        return ask_to_find(self.model, self.inputs, kinds, partial(self.progress, "answers"))

    def prune(self, answers: Answers | None, shards: ShardFolder | None = None) -> PruningReport:
        reference = None if answers is None else Reference(self.model, self.inputs, answers)
        pruned = partial(self.progress, "prune")
        if self.settings.method == DROPPING:
            assert reference is not None
            calibration = reference.calibration(calibration_kinds(self.settings))
            return drop_blocks(self.model, calibration, self.settings.sparsity, progress=pruned)
        direction = None
        if reference is not None and self.settings.allocation == "safety":
            direction = measure_on_reference(self.model, reference, partial(self.progress, "direction")).direction
        return prune_on_reference(
            self.model, reference, self.settings, direction, seed=self.seed, shards=shards, progress=pruned
        )


def _prune_by_block(job: _Pruning, workspace: Workspace) -> PruningReport:
    """Write each block as it is done; what is finished outlives an interruption."""
    with workspace.working():
        answers = workspace.stage("answers", "answers.json", job.ask, write_json, read_json) if job.is_asked else None
        shards = ShardFolder(workspace.folder, job.model)
        with workspace.block_stage("prune"):
            report = job.prune(answers, shards)
            shards.finish()
        workspace.finish(leave_out=("answers.json",))
    return report


def _words(settings: PruningSettings) -> tuple[str, float, str, str, str]:
    """Method, sparsity, pattern, scope and allocation as the checks take them."""
    method = "magnitude" if settings.method == DROPPING else settings.method
    return method, settings.sparsity, settings.pattern, settings.scope, settings.allocation


def _check_settings(settings: PruningSettings) -> None:
    given = settings.pattern, settings.scope, settings.allocation
    if settings.method == DROPPING and given != ("unstructured", "row", "uniform"):
        raise UsageError(
            "prune: method blocks with a pattern, scope or allocation; it drops whole blocks. Leave these options out."
        )
    check_words(*_words(settings))


def pruned_sizes(folder: Path, pruned: PruningReport) -> dict[str, int]:
    """Bytes of a pruned model's folder, of the GGUF files it could become, and of it with its zeros packed."""
    sizes = file_sizes(folder)
    zeros = [(one.weights, one.sparsity, float(one.bits)) for one in pruned.tensors]
    return sizes | {"packed": packed_bytes(sizes["mlx"], zeros)}


def calibration_kinds(settings: PruningSettings) -> tuple[str, ...]:
    """The kinds of prompts whose dialogues pruning is calibrated on."""
    return KINDS if settings.calibration_kinds == "all" else ("harmless",)
