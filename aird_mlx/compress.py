"""One compression alone: prune or quantize a model, and write it as an MLX folder.

What `aird_mlx.pipeline` prunes with is here too, so that both prune alike. Nothing is repaired or judged here.
"""

from __future__ import annotations

import dataclasses
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from mlx_lm.convert import mixed_quant_predicate_builder

from aird_mlx.direction import Direction
from aird_mlx.environment import resumable_facts
from aird_mlx.errors import ModelError, OutputError, UsageError
from aird_mlx.gguf_export.sizes import file_sizes, packed_bytes
from aird_mlx.inputs import gather_inputs, text_sequences
from aird_mlx.model import (
    ChatModel,
    ShardFolder,
    find_folder,
    load,
    loaded_bytes,
    needs_streaming,
    read_config,
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
from aird_mlx.quantization import (
    check_learned,
    favour_writers,
    learn_quantization,
    plan_modules,
    quantize_model,
)
from aird_mlx.reference import MAX_NEW_TOKENS, Answers, Reference, ask_reference
from aird_mlx.report import PruningReport, QuantizationReport
from aird_mlx.settings import REFUSAL_RECIPE, Progress, PruningSettings, QuantizationSettings, check_recipe
from aird_mlx.stages import DIRECTION_PROMPTS, measure_on_reference
from aird_mlx.workspace import (
    Workspace,
    check_new_folder,
    check_space,
    check_started,
    partial_of,
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
    is_dropping = settings.method == DROPPING
    words = "magnitude" if is_dropping else settings.method, settings.sparsity
    if is_dropping and (settings.pattern, settings.scope, settings.allocation) != ("unstructured", "row", "uniform"):
        raise UsageError(
            "prune: method blocks with a pattern, scope or allocation; it drops whole blocks. Leave these options out."
        )
    check_words(*words, settings.pattern, settings.scope, settings.allocation)
    check_new_folder(out, "--out")
    folder = find_folder(model, revision=revision)
    if streaming is None:
        streaming = resume or needs_streaming(folder)
    if is_dropping and streaming:
        raise UsageError(
            "prune: method blocks with --streaming; it writes a model that is in memory. Use another method, or a "
            "machine that holds the model."
        )
    if resume:
        check_started(out)
    else:
        check_space(out, loaded_bytes(folder), "--out")
    loaded = load(model, revision=revision, trust_remote_code=trust_remote_code, streaming=streaming)
    check_pruning(loaded, *words, settings.pattern, settings.scope, settings.allocation)
    inputs = gather_inputs(model, seed, harmful=harmful, harmless=harmless, calibration=calibration)

    def ask() -> Answers:
        return ask_reference(
            loaded,
            inputs,
            max_new_tokens=MAX_NEW_TOKENS,
            batch_size=64,
            kinds=KINDS if settings.allocation == "safety" else _calibration_kinds(settings),
            parts=("find",),
            progress=partial(progress, "answers"),
        )

    def prune(answers: Answers | None, shards: ShardFolder | None) -> PruningReport:
        reference, direction = None, None
        if answers is not None:
            reference = Reference(loaded, inputs, answers)
            if settings.allocation == "safety":
                direction = measure_on_reference(loaded, reference, partial(progress, "direction")).direction
        if is_dropping:
            assert reference is not None
            calibration = reference.calibration(_calibration_kinds(settings))
            return drop_blocks(loaded, calibration, settings.sparsity, progress=partial(progress, "prune"))
        return prune_on_reference(
            loaded, reference, settings, direction, seed=seed, shards=shards, progress=partial(progress, "prune")
        )

    is_asked = is_dropping or settings.method in CALIBRATED or settings.allocation != "uniform"
    if streaming:
        files = {"harmful": harmful, "harmless": harmless, "calibration": calibration}
        facts = dataclasses.asdict(settings) | {"model": model, "seed": seed}
        workspace = Workspace(out, resumable_facts(facts, files, folder), resume=resume)
        with workspace.working():
            answers = workspace.stage("answers", "answers.json", ask, write_json, read_json) if is_asked else None
            shards = ShardFolder(workspace.folder, loaded)
            with workspace.block_stage("prune"):
                report = prune(answers, shards)
                shards.finish()
            workspace.finish(leave_out=("answers.json",))
    else:
        report = prune(ask() if is_asked else None, None)
        save(loaded, out)
    return dataclasses.replace(
        report,
        model=model,
        written={"mlx": str(out)},
        sizes=pruned_sizes(out, report),
        notes=[*loaded.notes, *report.notes, *([NOT_FASTER] if report.tensors else [])],
    )


def pruned_sizes(folder: Path, pruned: PruningReport) -> dict[str, int]:
    """Bytes of a pruned model's folder, of the GGUF files it could become, and of it with its zeros packed."""
    sizes = file_sizes(folder)
    zeros = [(one.weights, one.sparsity, float(one.bits)) for one in pruned.tensors]
    return sizes | {"packed": packed_bytes(sizes["mlx"], zeros)}


def quantized_sizes(folder: Path, quantized: QuantizationReport) -> dict[str, int]:
    """`pruned_sizes` of a quantized model."""
    sizes = file_sizes(folder)
    zeros = [(one.weights, one.zeros * one.zeros_kept, float(one.bits)) for one in quantized.tensors]
    return sizes | {"packed": packed_bytes(sizes["mlx"], zeros)}


def _calibration_kinds(settings: PruningSettings) -> Sequence[str]:
    return KINDS if settings.calibration_kinds == "all" else ("harmless",)


def quantize_as(
    model: ChatModel,
    how: QuantizationSettings,
    *,
    layer: int | None = None,
    shards: ShardFolder | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> QuantizationReport:
    """Quantize ``model`` in place; what is zero stays zero.

    Args:
        model: changed in place.
        how: how to quantize.
        layer: of the refusal direction, for the recipe ``refusal``.
        shards, progress: see `quantize_model`.

    Raises:
        UsageError: a group size that does not divide a width.
    """
    return quantize_model(model, **_arguments(model, how, layer), shards=shards, progress=progress)


def check_quantizable(model: ChatModel, how: QuantizationSettings) -> None:
    """Find out whether `quantize_as` could quantize ``model``, which stays as it is.

    Raises:
        UsageError: as `quantize_as`.
    """
    plan_modules(model, **_arguments(model, how, None))


def _arguments(model: ChatModel, how: QuantizationSettings, layer: int | None) -> dict[str, Any]:
    bits, size = check_recipe(how)
    recipe = None
    if how.mixed == REFUSAL_RECIPE:  # where the layer is not known yet, one in the middle stands for it
        recipe = favour_writers(model, len(model.blocks) // 2 if layer is None else layer, bits, size)
    elif how.mixed is not None:
        recipe = mixed_quant_predicate_builder(how.mixed, model.network, size)
    return {"mode": how.mode, "bits": how.bits, "group_size": how.group_size, "recipe": recipe}


def write_quantized(
    model: str,
    out: Path,
    *,
    mode: str = "affine",
    bits: int | None = None,
    group_size: int | None = None,
    mixed: str | None = None,
    method: str = "round",
    streaming: bool | None = None,
    harmful: Path | None = None,
    harmless: Path | None = None,
    calibration: Path | None = None,
    seed: int = 0,
    revision: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> QuantizationReport:
    """Quantize a model and write it; what was pruned stays zero, but for learned methods, which count what does.

    Args:
        model: ``"demo"``, a folder, or a hub id; not quantized.
        out: the MLX folder to write; must not exist.
        mode, bits, group_size, mixed: see `QuantizationSettings`.
        method: ``round``, or of `LEARNED`: learned from the model's own answers to the prompts.
        streaming: have one block in memory at a time, see `write_pruned`; learned methods take the whole model.
        harmful, harmless, calibration: prompts and texts instead of the built-in ones.
        seed: of the splits of the prompts, and of the learning.
        revision, trust_remote_code: see `load`.
        progress: called with (stage, steps done, steps).

    Raises:
        AirdError: bad input; nothing is written.
    """
    how = QuantizationSettings(mode, bits, group_size, mixed)
    check_recipe(how)
    is_learned = method != "round"
    if is_learned and (mixed is not None or mode != "affine"):
        seen = f"mode {mode}" if mode != "affine" else f"the recipe {mixed}"
        raise UsageError(f"quantize: {seen} with method {method}; it is affine and alike for all. Leave one out.")
    check_new_folder(out, "--out")
    known = read_config(find_folder(model, revision=revision))
    found = known.get("quantization") or known.get("quantization_config")
    if found is not None:
        raise ModelError(
            f"quantize: {model} is quantized already ({_quantization_words(found)}); a model that is not quantized is "
            "needed, since rounding twice loses twice. Quantize the original."
        )
    if is_learned:
        check_learned(method, bits, group_size, str(known["model_type"]))
    folder = find_folder(model, revision=revision)
    check_space(out, loaded_bytes(folder), "--out")
    if is_learned and streaming:
        raise UsageError(f"quantize: --streaming with method {method}; it learns on a whole model. Leave one out.")
    if streaming is None:
        streaming = not is_learned and needs_streaming(folder)
    loaded = load(model, revision=revision, trust_remote_code=trust_remote_code, streaming=streaming)
    reference: Reference | None = None
    if is_learned or mixed == REFUSAL_RECIPE:
        inputs = gather_inputs(model, seed, harmful=harmful, harmless=harmless, calibration=calibration)
        answers = ask_reference(
            loaded,
            inputs,
            max_new_tokens=MAX_NEW_TOKENS,
            batch_size=64,
            parts=("find",),
            progress=partial(progress, "answers"),
        )
        reference = Reference(loaded, inputs, answers)
    if is_learned:
        assert reference is not None
        chats = [ids for ids, _ in reference.dialogues(KINDS)] + text_sequences(
            loaded.tokenizer, reference.inputs.texts
        )
        random.Random(seed).shuffle(chats)
        progress(method, 0, 1)
        report = learn_quantization(loaded, method, chats, bits=bits, group_size=group_size, seed=seed)
        progress(method, 1, 1)
    else:
        layer = None
        if reference is not None:
            layer = measure_on_reference(loaded, reference, partial(progress, "direction")).direction.layer
        with _save_blocks(loaded, out) if streaming else nullcontext() as shards:
            report = quantize_as(loaded, how, layer=layer, shards=shards, progress=partial(progress, "quantize"))
    if not streaming:
        save(loaded, out)
    return dataclasses.replace(
        report,
        model=model,
        written={"mlx": str(out)},
        sizes=quantized_sizes(out, report),
        notes=[*loaded.notes, *report.notes],
    )


@contextmanager
def _save_blocks(model: ChatModel, out: Path) -> Iterator[ShardFolder]:
    """The folder to write the blocks of a streamed model to: whole at the end, or not there at all."""
    partial_folder = partial_of(out)
    try:
        shards = ShardFolder(partial_folder, model)
        yield shards
        shards.finish()
        partial_folder.rename(out)
    except OSError as error:
        raise OutputError(
            f"output: {out} cannot be written ({error.strerror or error}); a writable place with free space is needed. "
            "Free space or choose another --out."
        ) from error
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)


def _quantization_words(found: object) -> str:
    if not isinstance(found, dict):
        return "its config says so"
    words = [f"{found['bits']} bits"] if "bits" in found else []
    words += [f"group {found['group_size']}"] if "group_size" in found else []
    words += [str(found["quant_method"])] if "quant_method" in found else []
    return ", ".join(words) or "its config says so"
