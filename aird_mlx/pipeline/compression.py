"""The models of a run that are made from the dense one: pruned, quantized, and read back from what was written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import mlx.core as mx

from aird_mlx.compress import prune_on_reference, quantize_as
from aird_mlx.direction import Direction
from aird_mlx.model import ChatModel, load, save
from aird_mlx.pipeline.streaming import compress_blocks
from aird_mlx.pruning import remove_experts
from aird_mlx.quantization import load_quantized
from aird_mlx.reference import Reference
from aird_mlx.report import PruningReport, QuantizationReport
from aird_mlx.settings import Progress, QuantizationSettings, RepairSettings
from aird_mlx.workspace import Workspace, read_record, write_record

Left = TypeVar("Left", PruningReport, QuantizationReport)


class Compression:
    """How one run compresses, each step resumable."""

    def __init__(self, settings: RepairSettings, workspace: Workspace, dense: ChatModel, progress: Progress) -> None:
        self.settings, self.workspace, self.dense, self.progress = settings, workspace, dense, progress
        self.is_streaming = dense.stream is not None

    def compress(self, reference: Reference, direction: Direction) -> ChatModel:
        """The compressed model: pruned, and quantized, as asked."""
        pruned = self.prune(reference, direction)
        how = self.settings.quantization
        return pruned if how is None else self._quantized(pruned, how, direction.layer)

    def prune(self, reference: Reference, direction: Direction) -> ChatModel:
        """A second copy of the model, pruned; by default calibrated on harmless text only, as by a stock compressor."""
        model = self.read(self.settings.model)
        if self.is_streaming:
            if self.settings.prune_method == "none":
                return model
            compress_blocks(self.settings, self.workspace, model, reference, direction, self._step("compress"))
            return self.read(self.workspace.folder / "compressed")

        def compute() -> dict[str, mx.array]:
            if self.settings.prune_method != "none":
                pruned = prune_on_reference(
                    model,
                    reference,
                    self.settings.pruning,
                    direction,
                    seed=self.settings.seed,
                    progress=self._step("compress"),
                )
                self.workspace.write("pruning.json", pruned, write_record)
            return {f"{block}.{name}": linear.weight for block, name, linear in model.linears()}

        weights = self.workspace.stage("compress", "compressed.safetensors", compute, _save_arrays, _load_arrays)
        pruned = self.pruning
        if pruned is not None and pruned.removed_experts and not model.kept_experts:
            remove_experts(model, {int(block): gone for block, gone in pruned.removed_experts.items()})
        for block, name, linear in model.linears():
            linear.weight = weights[f"{block}.{name}"]
        return model

    def _quantized(self, pruned: ChatModel, how: QuantizationSettings, layer: int) -> ChatModel:
        """The pruned model quantized and read back, its quantized weights set aside."""
        is_pruned = self.settings.prune_method != "none"
        kept = {pruned.path(block, name): linear.weight != 0 for block, name, linear in pruned.linears()}

        def make(path: Path) -> None:
            quantized = quantize_as(pruned, how, layer=layer, progress=self._step("quantize"))
            self.workspace.write("quantization.json", quantized, write_record)
            save(pruned, path)

        self.workspace.folder_stage("quantize", "compressed", make)
        return self.read_quantized("compressed", kept if is_pruned else {})

    def read_quantized(self, folder: str, kept: Mapping[str, mx.array]) -> ChatModel:
        """A quantized folder of the run, see `load_quantized`."""
        return load_quantized(
            self.workspace.folder / folder, self.dense, kept, trust_remote_code=self.settings.trust_remote_code
        )

    @property
    def pruning(self) -> PruningReport | None:
        """What pruning did, where it ran."""
        return self._left(PruningReport, "pruning.json")

    @property
    def quantization(self) -> QuantizationReport | None:
        """What quantization did, where it ran."""
        return self._left(QuantizationReport, "quantization.json")

    def _left(self, kind: type[Left], file: str) -> Left | None:
        """What a stage left beside its result, where it ran."""
        path = self.workspace.folder / file
        return read_record(kind, path) if path.is_file() else None

    def read(self, model: str | Path) -> ChatModel:
        """Another copy of the dense model, or what was written from it: loaded with the same permissions."""
        return load(
            model,
            revision=self.settings.revision,
            trust_remote_code=self.settings.trust_remote_code,
            streaming=self.is_streaming,
        )

    def _step(self, stage: str) -> Callable[[int, int], None]:
        return lambda done, total: self.progress(stage, done, total)


def _save_arrays(arrays: dict[str, mx.array], path: Path) -> None:
    mx.save_safetensors(str(path), arrays)


def _load_arrays(path: Path) -> dict[str, mx.array]:
    arrays = mx.load(str(path))
    assert isinstance(arrays, dict)
    return arrays
