"""One compression alone: prune or quantize a model, and write it as an MLX folder.

What `aird_mlx.pipeline` prunes with is here too, so that both prune alike. Nothing is repaired or judged here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mlx_lm.convert import mixed_quant_predicate_builder

from aird_mlx.direction import Direction
from aird_mlx.errors import ModelError
from aird_mlx.inputs import gather_inputs
from aird_mlx.model import ChatModel, find_folder, load, read_config, save
from aird_mlx.prompts import KINDS
from aird_mlx.pruning import CALIBRATED, Allocation, allocate_sparsity, check_pruning, check_words, prune_model
from aird_mlx.quantization import plan_modules, quantize_model
from aird_mlx.reference import MAX_NEW_TOKENS, Reference, ask_reference
from aird_mlx.report import PruningReport, QuantizationReport
from aird_mlx.settings import Progress, PruningSettings, QuantizationSettings, check_recipe
from aird_mlx.stages import DIRECTION_PROMPTS, measure_on_reference
from aird_mlx.workspace import check_new_folder

_NOT_FASTER = "zeros alone make the file no smaller and MLX no faster: weights are stored and multiplied as if dense"


def prune_on_reference(
    model: ChatModel,
    reference: Reference | None,
    settings: PruningSettings,
    direction: Direction | None = None,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PruningReport:
    """Prune ``model``, a copy of the dense one, calibrated on the dense model's own dialogues.

    Args:
        model: changed in place.
        reference: the dense model and its answers; None where nothing is calibrated.
        settings: how to prune.
        direction: the dense model's refusal direction; needed to allocate by safety.
        seed, progress: see `prune_model`.
    """
    calibration = [] if reference is None else reference.calibration(_calibration_kinds(settings))
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
        revision, trust_remote_code: see `load`.
        progress: called with (stage, steps done, steps).

    Raises:
        AirdError: bad input; nothing is written.
    """
    settings = settings or PruningSettings()
    check_words(settings.method, settings.sparsity, settings.pattern, settings.scope, settings.allocation)
    check_new_folder(out, "--out")
    loaded = load(model, revision=revision, trust_remote_code=trust_remote_code)
    check_pruning(loaded, settings.method, settings.sparsity, settings.pattern, settings.scope, settings.allocation)
    reference, direction = None, None
    if settings.method in CALIBRATED or settings.allocation != "uniform":
        inputs = gather_inputs(model, seed, harmful=harmful, harmless=harmless, calibration=calibration)
        answers = ask_reference(
            loaded,
            inputs,
            max_new_tokens=MAX_NEW_TOKENS,
            batch_size=64,
            kinds=KINDS if settings.allocation == "safety" else _calibration_kinds(settings),
            parts=("find",),
            progress=partial(progress, "answers"),
        )
        reference = Reference(loaded, inputs, answers)
        if settings.allocation == "safety":
            direction = measure_on_reference(loaded, reference, partial(progress, "direction")).direction
    report = prune_on_reference(loaded, reference, settings, direction, seed=seed, progress=partial(progress, "prune"))
    save(loaded, out)
    notes = [] if report.removed_experts else [_NOT_FASTER]
    return dataclasses.replace(
        report, model=model, written={"mlx": str(out)}, notes=[*loaded.notes, *report.notes, *notes]
    )


def _calibration_kinds(settings: PruningSettings) -> Sequence[str]:
    return KINDS if settings.calibration_kinds == "all" else ("harmless",)


def quantize_as(
    model: ChatModel,
    how: QuantizationSettings,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> QuantizationReport:
    """Quantize ``model`` in place; what is zero stays zero.

    Raises:
        UsageError: a group size that does not divide a width.
    """
    return quantize_model(model, **_arguments(model, how), progress=progress)


def check_quantizable(model: ChatModel, how: QuantizationSettings) -> None:
    """Find out whether `quantize_as` could quantize ``model``, which stays as it is.

    Raises:
        UsageError: as `quantize_as`.
    """
    plan_modules(model, **_arguments(model, how))


def _arguments(model: ChatModel, how: QuantizationSettings) -> dict[str, Any]:
    _, size = check_recipe(how)
    recipe = None if how.mixed is None else mixed_quant_predicate_builder(how.mixed, model.network, size)
    return {"mode": how.mode, "bits": how.bits, "group_size": how.group_size, "recipe": recipe}


def write_quantized(
    model: str,
    out: Path,
    *,
    mode: str = "affine",
    bits: int | None = None,
    group_size: int | None = None,
    mixed: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> QuantizationReport:
    """Quantize a model and write it; what was pruned stays zero.

    Args:
        model: ``"demo"``, a folder, or a hub id; not quantized.
        out: the MLX folder to write; must not exist.
        mode, bits, group_size, mixed: see `QuantizationSettings`.
        revision, trust_remote_code: see `load`.
        progress: called with (stage, steps done, steps).

    Raises:
        AirdError: bad input; nothing is written.
    """
    how = QuantizationSettings(mode, bits, group_size, mixed)
    check_recipe(how)
    check_new_folder(out, "--out")
    known = read_config(find_folder(model, revision=revision))
    found = known.get("quantization") or known.get("quantization_config")
    if found is not None:
        raise ModelError(
            f"quantize: {model} is quantized already ({_quantization_words(found)}); a model that is not quantized is "
            "needed, since rounding twice loses twice. Quantize the original."
        )
    loaded = load(model, revision=revision, trust_remote_code=trust_remote_code)
    report = quantize_as(loaded, how, progress=partial(progress, "quantize"))
    save(loaded, out)
    return dataclasses.replace(report, model=model, written={"mlx": str(out)}, notes=[*loaded.notes, *report.notes])


def _quantization_words(found: object) -> str:
    if not isinstance(found, dict):
        return "its config says so"
    words = [f"{found['bits']} bits"] if "bits" in found else []
    words += [f"group {found['group_size']}"] if "group_size" in found else []
    words += [str(found["quant_method"])] if "quant_method" in found else []
    return ", ".join(words) or "its config says so"
