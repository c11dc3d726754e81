"""Quantization alone, and written; what `aird_mlx.pipeline` quantizes with is here too."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from mlx_lm.convert import mixed_quant_predicate_builder

from aird_mlx.architectures import quantization_of
from aird_mlx.errors import ModelError, UsageError
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
from aird_mlx.quantization import (
    check_learned,
    favour_writers,
    learn_quantization,
    plan_modules,
    quantize_model,
)
from aird_mlx.reference import Reference, ask_to_find
from aird_mlx.report import QuantizationReport
from aird_mlx.settings import REFUSAL_RECIPE, Progress, QuantizationSettings, check_recipe
from aird_mlx.stages import measure_on_reference
from aird_mlx.workspace import check_new_folder, check_space, whole_folder, writing_to


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
    settings: QuantizationSettings | None = None,
    *,
    method: str = "round",
    harmful: Path | None = None,
    harmless: Path | None = None,
    calibration: Path | None = None,
    seed: int = 0,
    streaming: bool | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> QuantizationReport:
    """Quantize a model and write it; what was pruned stays zero, but for learned methods, which count what does.

    Args:
        model: ``"demo"``, a folder, or a hub id; not quantized.
        out: the MLX folder to write; must not exist.
        settings: how to quantize.
        method: ``round``, or of `LEARNED`: learned from the model's own answers to the prompts.
        harmful, harmless, calibration: prompts and texts instead of the built-in ones.
        seed: of the splits of the prompts, and of the learning.
        streaming: have one block in memory at a time, see `write_pruned`; learned methods take the whole model.
        revision, trust_remote_code: see `load`.
        progress: called with (stage, steps done, steps).

    Raises:
        AirdError: bad input; nothing is written.
    """
    settings = settings or QuantizationSettings()
    check_recipe(settings)
    is_learned = method != "round"
    if is_learned and (settings.mixed is not None or settings.mode != "affine"):
        seen = f"mode {settings.mode}" if settings.mode != "affine" else f"the recipe {settings.mixed}"
        raise UsageError(f"quantize: {seen} with method {method}; it is affine and alike for all. Leave one out.")
    check_new_folder(out, "--out")
    folder = find_folder(model, revision=revision)
    config = read_config(folder)
    _check_not_quantized(model, config)
    if is_learned:
        check_learned(method, settings.bits, settings.group_size, str(config["model_type"]))
    check_space(out, loaded_bytes(folder), "--out")
    if is_learned and streaming:
        raise UsageError(f"quantize: --streaming with method {method}; it learns on a whole model. Leave one out.")
    if streaming is None:
        streaming = not is_learned and needs_streaming(folder)
    loaded = load(model, revision=revision, trust_remote_code=trust_remote_code, streaming=streaming)
    reference: Reference | None = None
    if is_learned or settings.mixed == REFUSAL_RECIPE:
        inputs = gather_inputs(model, seed, harmful=harmful, harmless=harmless, calibration=calibration)
        reference = Reference(loaded, inputs, ask_to_find(loaded, inputs, progress=partial(progress, "answers")))
    if is_learned:
        assert reference is not None
        report = _learn(reference, method, settings, seed, progress)
    else:
        layer = None
        if reference is not None:
            layer = measure_on_reference(loaded, reference, partial(progress, "direction")).direction.layer
        with _save_blocks(loaded, out) if streaming else nullcontext() as shards:
            report = quantize_as(loaded, settings, layer=layer, shards=shards, progress=partial(progress, "quantize"))
    if not streaming:
        save(loaded, out)
    return dataclasses.replace(
        report,
        model=model,
        written={"mlx": str(out)},
        sizes=quantized_sizes(out, report),
        notes=[*loaded.notes, *report.notes],
    )


def _learn(
    reference: Reference, method: str, how: QuantizationSettings, seed: int, progress: Progress
) -> QuantizationReport:
    """Quantize the reference's model by a method that learns on its own dialogues and the calibration texts."""
    model = reference.model
    chats = [ids for ids, _ in reference.dialogues(KINDS)] + text_sequences(model.tokenizer, reference.inputs.texts)
    random.Random(seed).shuffle(chats)
    progress(method, 0, 1)
    report = learn_quantization(model, method, chats, bits=how.bits, group_size=how.group_size, seed=seed)
    progress(method, 1, 1)
    return report


def _check_not_quantized(model: str, config: Mapping[str, Any]) -> None:
    found = quantization_of(config)
    if found is not None:
        raise ModelError(
            f"quantize: {model} is quantized already ({_quantization_words(found)}); a model that is not quantized is "
            "needed, since rounding twice loses twice. Quantize the original."
        )


def quantized_sizes(folder: Path, quantized: QuantizationReport) -> dict[str, int]:
    """`pruned_sizes` of a quantized model."""
    sizes = file_sizes(folder)
    zeros = [(one.weights, one.zeros * one.zeros_kept, float(one.bits)) for one in quantized.tensors]
    return sizes | {"packed": packed_bytes(sizes["mlx"], zeros)}


@contextmanager
def _save_blocks(model: ChatModel, out: Path) -> Iterator[ShardFolder]:
    """The folder to write the blocks of a streamed model to: whole at the end, or not there at all."""
    with writing_to(out, "--out"), whole_folder(out) as partial_folder:
        shards = ShardFolder(partial_folder, model)
        yield shards
        shards.finish()


def _quantization_words(found: object) -> str:
    if not isinstance(found, dict):
        return "its config says so"
    words = [f"{found['bits']} bits"] if "bits" in found else []
    words += [f"group {found['group_size']}"] if "group_size" in found else []
    words += [str(found["quant_method"])] if "quant_method" in found else []
    return ", ".join(words) or "its config says so"
