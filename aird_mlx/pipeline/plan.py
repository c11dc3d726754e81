"""What a run is about before it starts: its model and inputs, what it would do, and what a resumed run must share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib.metadata import version

from aird_mlx import __version__
from aird_mlx.compress import check_quantizable
from aird_mlx.gguf_export import check_exportable, is_available
from aird_mlx.gguf_export.stream import hash_file
from aird_mlx.inputs import Inputs, gather_inputs
from aird_mlx.model import COMPANION_FILES, ChatModel, load
from aird_mlx.prompts import KINDS
from aird_mlx.pruning import check_pruning
from aird_mlx.settings import RepairSettings, check_places, check_settings, pruning_words, quantization_words

# What may differ when an interrupted run is resumed: where it goes and what is exported, not what is measured.
RESUMABLE = ("resume", "out", "mlx_path", "dry_run", "gguf", "controls")
GIVEN_FILES = ("harmful", "harmless", "twins", "calibration", "test_harmful", "test_harmless", "test_twins")


@dataclass(frozen=True)
class Plan:
    """What a run would do, without doing it."""

    model: str
    stages: list[str]
    parameters: int
    size_bytes: int
    out: str
    notes: list[str]


def plan_repair(settings: RepairSettings) -> Plan:
    """Check the settings, the model and the prompts, and say what `repair_model` would do.

    Raises:
        AirdError: as `repair_model` would on bad input.
    """
    check_settings(settings)
    out = check_places(settings)
    contrast = inputs_of(settings).contrast
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
    notes = [*dense.notes, f"prompts: {contrast.origin}"]
    if settings.gguf and not is_available():
        notes.append("llama-cpp-python is not installed: exported files would not be checked")
    size = int(dense.parameters * dense.bits_per_weight / 8)
    return Plan(settings.model, stages, dense.parameters, size, str(out), notes)


def load_dense(settings: RepairSettings) -> ChatModel:
    """The model to compress, once it is sure that it can be pruned and exported as asked."""
    dense = load(settings.model, revision=settings.revision, trust_remote_code=settings.trust_remote_code)
    if settings.prune_method != "none":
        pruning = settings.pruning
        check_pruning(dense, pruning.method, pruning.sparsity, pruning.pattern, pruning.scope, pruning.allocation)
    if settings.quantization is not None:
        check_quantizable(dense, settings.quantization)
    for outtype in settings.gguf:
        check_exportable(dense.folder, outtype)
    return dense


def inputs_of(settings: RepairSettings) -> Inputs:
    """The prompts and texts of the run."""
    given = {name: getattr(settings, name) for name in GIVEN_FILES}
    return gather_inputs(settings.model, settings.seed, limit=settings.limit, **given)


def fixed_facts(settings: RepairSettings, dense: ChatModel) -> dict[str, str]:
    """What must be the same when an interrupted run is resumed: settings, versions, and the contents of every file."""
    fixed = {name: str(value) for name, value in dataclasses.asdict(settings).items() if name not in RESUMABLE}
    for name in GIVEN_FILES:
        path = getattr(settings, name)
        if path is not None:
            fixed[f"content of {name}"] = hash_file(path)
    for name in ("config.json", *COMPANION_FILES):
        if (dense.folder / name).is_file():
            fixed[f"content of the model's {name}"] = hash_file(dense.folder / name)
    for path in sorted(dense.folder.glob("*.safetensors")):  # gigabytes are not read for this
        status = path.stat()
        fixed[f"size and time of the model's {path.name}"] = f"{status.st_size} bytes, {status.st_mtime_ns}"
    return fixed | {"version": __version__, "mlx": version("mlx")}
