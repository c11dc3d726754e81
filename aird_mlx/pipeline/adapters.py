"""The repair of a finished run as adapters of the compressed model: for llama.cpp, and for MLX.

A deployed file need not be replaced: ``--lora patch.gguf`` beside it does the same. What the repair changed is in
``patch.safetensors``; this module writes it in the runtimes' forms and, given the deployed file, measures both.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np

from aird_mlx import __version__
from aird_mlx.architectures import blocks_path
from aird_mlx.direction import load_direction
from aird_mlx.errors import ExportError
from aird_mlx.gguf_export import NOT_INSTALLED, is_available
from aird_mlx.gguf_export.adapter import LoraFile, export_lora
from aird_mlx.gguf_export.control_vector import export_control_vector
from aird_mlx.gguf_export.header import Value
from aird_mlx.gguf_export.stored import read_stored_tensors
from aird_mlx.model import ChatModel, load, read_config
from aird_mlx.patch import Patch, factor_change, load_patch
from aird_mlx.pipeline.canary_run import run_canaries
from aird_mlx.report import AdapterCheck, AdapterReport
from aird_mlx.report_page import percent, read_report
from aird_mlx.settings import Progress
from aird_mlx.workspace import check_new_folder, remove, whole_folder, writing_to

ADAPTER, CONTROL_VECTOR = "adapter", "refusal.cvec.gguf"
BLUNT = (
    "the control vector adds the refusal direction to every token of every prompt, harmless ones too: it raises "
    "over-refusals, and is for emergencies only"
)
SAME_WEIGHTS = 1e-4  # relative; float16 is further away


def export_adapters(
    out: Path,
    *,
    outfile: Path | None = None,
    rank: int | None = None,
    base: Path | None = None,
    control_vector: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> AdapterReport:
    """Write a repair as a LoRA for llama.cpp and as an adapter folder for mlx-lm.

    Args:
        out: what `repair_model` wrote.
        outfile: of the llama.cpp adapter; default ``patch.gguf`` in ``out``. The MLX adapter is a folder beside it.
        rank: at most; None: exact, however large that is. The MLX adapter of an exact change that is not low-rank
            holds the changed weights themselves.
        base: the compressed model's GGUF file; its hash goes into the adapter, and both are run in llama.cpp.
        control_vector: also write ``refusal.cvec.gguf`` beside it, see `export_control_vector`.
        progress: called with (stage, steps done, steps).

    Raises:
        AirdError: ``out`` is no such folder, a file exists already, or ``base`` is another model.
    """
    report = read_report(out)
    patch = load_patch(out / "patch.safetensors") if (out / "patch.safetensors").is_file() else None
    folder = out / "mlx" if (out / "mlx").is_dir() else Path(report.written.get("mlx", out / "mlx"))
    if patch is None or not folder.is_dir():
        missing = out / "patch.safetensors" if patch is None else folder
        raise ExportError(
            f"lora: there is no {missing}; the output folder of a finished `aird-mlx repair` is needed. Check the path."
        )
    outfile = outfile or out / "patch.gguf"
    adapter = outfile.with_name(ADAPTER)
    check_new_folder(adapter, "--outfile")
    facts: dict[str, Value] = {
        "aird.version": __version__,
        "aird.repair.rule": patch.rule,
        "aird.source.model": report.model,
    }
    written = export_lora(
        folder, patch, outfile, rank=rank, base=base, name=f"{Path(report.model).name}-refusals", extra_metadata=facts
    )
    is_low_rank = rank is not None or patch.rank is not None
    write = partial(_write_lora, patch=patch, rank=rank) if is_low_rank else partial(_write_weights, patch=patch)
    vector: dict[str, str] = {}
    check, notes = None, _notes(patch, written, base)
    with ExitStack() as undo:  # one adapter without the other, or one that does not run, is none
        undo.callback(remove, written.path)
        undo.callback(remove, adapter)
        adapter_bytes = _write_folder(adapter, folder, write)
        if control_vector:
            vector = _write_control_vector(out, folder, outfile.with_name(CONTROL_VECTOR), facts)
            undo.callback(remove, outfile.with_name(CONTROL_VECTOR))
            notes.append(BLUNT)
        if base is not None and is_available():
            check = _check(report.model, load(folder), base, written.path, progress)
        undo.pop_all()
    return AdapterReport(
        model=report.model,
        rule=patch.rule,
        rank=written.rank,
        lost=written.lost,
        lora_bytes=written.size_bytes,
        adapter_bytes=adapter_bytes,
        repaired_bytes=sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        base_sha256=written.base_sha256,
        base_distance=written.base_distance,
        check=check,
        written={"lora": str(written.path), "mlx adapter": str(adapter)} | vector,
        notes=notes,
    )


def _write_control_vector(out: Path, folder: Path, path: Path, facts: dict[str, Value]) -> dict[str, str]:
    """The refusal direction, as long as the difference of means, at its own layer."""
    direction = load_direction(out / "direction.safetensors")
    export_control_vector(folder, np.array(direction.vector) * direction.norm, direction.layer, path, facts)
    return {"control vector": str(path)}


def _notes(patch: Patch, written: LoraFile, base: Path | None) -> list[str]:
    notes = []
    if written.lost:
        notes.append(f"rank {written.rank} leaves out {percent(written.lost)} of the change (root of squares)")
    elif patch.rank is None:
        notes.append(
            f"rule {patch.rule} changes all surviving weights, so that an exact adapter has full rank and is larger "
            "than the weights it changes: the repaired model itself is smaller. --lora-rank cuts it, at a loss"
        )
    if written.base_distance is not None and written.base_distance > SAME_WEIGHTS:
        notes.append(
            f"the weights of {base} are {percent(written.base_distance)} of their length away from those that were "
            "repaired, as another type of file or another compression makes them; the adapter adds the same change"
        )
    if base is None:
        notes.append("without --base the adapter does not say which file it is for, and was not run")
    elif not is_available():
        notes.append(f"{NOT_INSTALLED}, so the adapter was not run")
    return notes


def _write_folder(adapter: Path, model: Path, write: Callable[[Path, Path], dict[str, object]]) -> int:
    """An adapter folder as mlx-lm reads it, whole or not there; bytes of its weights."""
    with writing_to(adapter, "--outfile"), whole_folder(adapter) as partial_folder:
        config = write(model, partial_folder / "adapters.safetensors")
        (partial_folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return (adapter / "adapters.safetensors").stat().st_size


def _write_lora(model: Path, path: Path, *, patch: Patch, rank: int | None) -> dict[str, object]:
    """Factors of one rank for all, as mlx-lm has it: those of less are filled up with zeros.

    Where a linear's are ``[in, rank]`` and ``[rank, out]``, fused experts' are ``[expert, rank, in]`` and
    ``[expert, out, rank]``.
    """
    blocks = _blocks_of(model)
    factors = {f"{blocks}.{part.block}.{part.name}": factor_change(part, rank) for part in patch.parts}
    most = max((left.shape[-1] for left, _ in factors.values()), default=1)
    arrays = {}
    for name, (left, right) in factors.items():
        experts, missing = [(0, 0)] * (left.ndim - 2), (0, most - left.shape[-1])
        a, b = mx.pad(right, [*experts, missing, (0, 0)]), mx.pad(left, [*experts, (0, 0), missing])
        arrays[f"{name}.lora_a"], arrays[f"{name}.lora_b"] = (a, b) if experts else (a.T, b.T)
    mx.save_safetensors(str(path), arrays)
    parameters = {"rank": most, "scale": 1.0, "dropout": 0.0, "keys": list(factors)}
    return {"fine_tune_type": "lora", "num_layers": 0, "lora_parameters": parameters}


def _write_weights(model: Path, path: Path, *, patch: Patch) -> dict[str, object]:
    """The changed weights as they are stored in the repaired folder."""
    blocks = _blocks_of(model)
    stems = {f"{blocks}.{part.block}.{part.name}" for part in patch.parts}
    files = sorted({tensor.file for tensor in read_stored_tensors(model).values()})
    arrays: dict[str, mx.array] = {}
    for file in files:
        found = mx.load(str(file))
        assert isinstance(found, dict)
        wanted = (f"{stem}.{part}" for stem in stems for part in ("weight", "scales", "biases"))
        arrays |= {name: found[name] for name in wanted if name in found}
    mx.save_safetensors(str(path), arrays)
    return {"fine_tune_type": "full", "num_layers": 0, "lora_parameters": {}}


def _blocks_of(model: Path) -> str:
    """Where the blocks of a folder's model are."""
    return blocks_path(read_config(model))


def _check(model: str, repaired: ChatModel, base: Path, lora: Path, progress: Progress) -> AdapterCheck:
    """Canaries in llama.cpp with and without the adapter, and in MLX."""
    run = run_canaries(model, repaired, partial(progress, "repaired"))
    parity = run.parity(base, lora=lora)
    return AdapterCheck(
        tokens=parity.tokens_compared,
        argmax_agreement=parity.argmax_agreement,
        max_logit_difference=parity.max_logit_difference,
        mean_kl=parity.mean_kl,
        base=run.refusals_in_llama(base, progress=partial(progress, "base alone")),
        adapted=run.refusals_in_llama(base, lora=lora, progress=partial(progress, "base with adapter")),
        repaired=run.refusals,
    )
