"""The importance matrix of a model, measured on its own dialogues: harmful, harmless and twin prompts, and plain text.

Importance matrices are usually computed on text alone, which never looks at a refusal; these tokens do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from aird_mlx.gguf_export.imatrix import Imatrix, check_new_imatrix, measure_imatrix, read_imatrix, write_imatrix
from aird_mlx.gguf_export.outtypes import AUTO, find_outtype
from aird_mlx.gguf_export.preparation import check_exportable, prepare
from aird_mlx.inputs import gather_inputs
from aird_mlx.model import ChatModel, load
from aird_mlx.prompts import KINDS
from aird_mlx.reference import Reference, ask_to_find
from aird_mlx.settings import Progress


def importance_on_reference(
    model: ChatModel, reference: Reference, progress: Progress = lambda stage, done, total: None
) -> Imatrix:
    """What ``model`` does with the calibration tokens of a run.

    Args:
        model: the one that is to be exported; read only.
        reference: gives the dialogues and texts.
        progress: called with (stage, blocks done, blocks).

    Raises:
        ModelError, ExportError: the model cannot be exported, or its activations are not finite.
    """
    datasets = [f"{kind} prompts with answers" for kind in KINDS if reference.answers[kind]["find"]]
    datasets += ["calibration texts"] if reference.inputs.texts else []
    return measure_imatrix(
        model,
        reference.calibration(KINDS),
        prepare(model.folder, "f32").plan,
        [f"aird-mlx: {', '.join(datasets)} ({reference.inputs.contrast.origin})"],
        partial(progress, "imatrix"),
    )


def measure_importance(
    model: str,
    *,
    harmful: Path | None = None,
    harmless: Path | None = None,
    twins: Path | None = None,
    calibration: Path | None = None,
    seed: int = 0,
    revision: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Imatrix:
    """Let a model answer the prompts, and measure its importance matrix on these dialogues.

    Args:
        model: ``"demo"``, a folder, or a hub id; a quantized one is dequantized first.
        harmful, harmless, twins, calibration: prompts and texts instead of the built-in ones.
        seed: of the splits of the prompts.
        revision, trust_remote_code: see `load`.
        progress: called with (stage, steps done, steps).

    Raises:
        AirdError: the model cannot be loaded or exported, or a file of prompts cannot be used.
    """
    loaded = load(model, revision=revision, trust_remote_code=trust_remote_code)
    check_exportable(loaded.folder, "f32")  # else found out after all the answers
    inputs = gather_inputs(model, seed, harmful=harmful, harmless=harmless, twins=twins, calibration=calibration)
    answers = ask_to_find(loaded, inputs, progress=partial(progress, "answers"))
    return importance_on_reference(loaded, Reference(loaded, inputs, answers), progress)


MEASURE = "measure"


def find_importance(
    given: str | None,
    model: str,
    outtypes: Iterable[str],
    place: Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Imatrix | None:
    """The importance matrix an export is to use, if any.

    Args:
        given: a file of ``llama-imatrix``, or ``measure``: measured where a type uses one; None: measured where a
            type cannot be written without.
        model: as for `measure_importance`.
        outtypes: the types of the export.
        place: where a measured one is written; must not exist.
        revision, trust_remote_code, progress: as for `measure_importance`.

    Raises:
        AirdError: the file cannot be read, or ``place`` exists; and as `measure_importance`.
    """
    if given not in (None, MEASURE):
        return read_imatrix(Path(given))
    known = [find_outtype(kind) for kind in outtypes if kind != AUTO]  # auto is never one of llama.cpp's
    if not any(one.needs_imatrix if given is None else not one.native for one in known):
        return None
    check_new_imatrix(place)
    measured = measure_importance(model, revision=revision, trust_remote_code=trust_remote_code, progress=progress)
    imatrix = replace(measured, name=place.name)
    write_imatrix(imatrix, place)
    return imatrix
