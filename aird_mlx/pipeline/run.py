"""One run of the main job, stage by stage, each resumable."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from aird_mlx.compress import quantize_as
from aird_mlx.controls import ControlRepair, control_repairs
from aird_mlx.direction import Direction, load_direction, save_direction
from aird_mlx.gguf_export import resolve_outtype
from aird_mlx.gguf_export.general import read_card
from aird_mlx.guard.record import CanarySet
from aird_mlx.inputs import Inputs
from aird_mlx.model import ChatModel, save
from aird_mlx.patch import Patch, fold, load_patch, patched, pruned_weights_back, save_patch
from aird_mlx.pipeline.compression import Compression
from aird_mlx.pipeline.estimate import disk_bytes
from aird_mlx.pipeline.export import answer_canaries, export_stage
from aird_mlx.pipeline.halves import Search, difference, figures_of, first_rule, joined, second_rule
from aird_mlx.pipeline.plan import fixed_facts, inputs_of, load_dense
from aird_mlx.pipeline.result import finish, make_report
from aird_mlx.pipeline.streaming import repair_by_block
from aird_mlx.quantization import restore_modules, set_aside_modules
from aird_mlx.reference import MAX_NEW_TOKENS, Reference, ask_reference
from aird_mlx.repair import RepairPlan
from aird_mlx.report import Control, RepairFigures, Report, Stage
from aird_mlx.report_page import write_front_matter
from aird_mlx.settings import Progress, RepairSettings, check_places, check_settings
from aird_mlx.stages import evaluate_control, evaluate_dense, evaluate_stage, measure_on_reference, refusal_directions
from aird_mlx.workspace import Workspace, check_space, read_json, read_record, write_json, write_record

Row = TypeVar("Row", Stage, Control)


def repair_model(settings: RepairSettings, *, progress: Progress = lambda stage, done, total: None) -> Report:
    """Compress a chat model, repair its refusals, prove both by measurement, and export it.

    Args:
        settings: what to do.
        progress: called with (stage, steps done, steps).

    Returns:
        Everything measured and written; also in ``out/report.json`` and ``out/report.md``.

    Raises:
        AirdError: bad input; nothing is left behind but, after a finished stage, ``out.partial`` for ``resume``.
    """
    check_settings(settings)
    out = check_places(settings)
    inputs = inputs_of(settings)
    dense = load_dense(settings)
    if not settings.resume:  # what is there already would count twice
        check_space(out, disk_bytes(settings, dense), "--out")
    workspace = Workspace(out, fixed_facts(settings, dense), resume=settings.resume)
    with workspace.working():
        return _Run(settings, workspace, dense, inputs, progress).run()


class _Run:
    """One run, stage by stage."""

    def __init__(
        self, settings: RepairSettings, workspace: Workspace, dense: ChatModel, inputs: Inputs, progress: Progress
    ) -> None:
        self.settings = settings
        self.workspace = workspace
        self.dense = dense
        self.inputs = inputs
        self.progress = progress
        self.max_new_tokens = settings.max_new_tokens or MAX_NEW_TOKENS
        self.compression = Compression(settings, workspace, dense, progress)

    def run(self) -> Report:
        """All stages in order, then the report, then the final name."""
        reference = self._reference()
        direction = self._direction(reference)
        compressed = self.compression.compress(reference, direction)
        stages = [
            self._row("dense", Stage, lambda: evaluate_dense(reference, direction)),
            self._evaluated("compressed", compressed, reference, direction),
        ]
        controls: list[Control] = []
        if self.compression.is_streaming:
            repair = repair_by_block(
                self.settings, self.workspace, compressed, reference, direction, self._step("repair")
            )
            written = self.compression.read(self.workspace.folder / "mlx")
        else:
            patch, repair = self._repaired(compressed, reference, direction)
            controls = self._controls(compressed, reference, direction)
            written, repair = self._written(compressed, patch, repair)
        stages.append(self._evaluated("repaired", written, reference, direction))
        if self.settings.gguf:
            canaries = answer_canaries(
                self.settings,
                self.workspace,
                self.dense,
                self.max_new_tokens,
                self._step("canaries of the dense model"),
            )
            repaired = stages[-1]
            stages += [
                self._exported(outtype, written, reference, repair, repaired, canaries) for outtype in self._outtypes()
            ]
        report = make_report(
            self.settings,
            self.workspace,
            self.dense,
            self.inputs,
            direction=direction,
            stages=stages,
            repair=repair,
            controls=controls,
            pruned=self.compression.pruning,
            quantized=self.compression.quantization,
        )
        finish(self.settings, self.workspace, report, self._source_card())
        return report

    def _reference(self) -> Reference:
        answers = self.workspace.stage(
            "dense answers",
            "answers.json",
            lambda: ask_reference(
                self.dense,
                self.inputs,
                max_new_tokens=self.max_new_tokens,
                batch_size=self.settings.batch_size,
                progress=self._step("dense answers"),
            ),
            write_json,
            read_json,
        )
        return Reference(self.dense, self.inputs, answers)

    def _direction(self, reference: Reference) -> Direction:
        return self.workspace.stage(
            "direction",
            "direction.safetensors",
            lambda: measure_on_reference(self.dense, reference, self._step("direction")).direction,
            save_direction,
            load_direction,
        )

    def _repaired(
        self, compressed: ChatModel, reference: Reference, direction: Direction
    ) -> tuple[Patch, RepairFigures]:
        """Choose and solve the patch; that of a quantized model is written here, since it has scales of its own."""
        search = Search(self.settings, reference, direction)
        how, rule = self.settings.quantization, self.settings.rule
        if how is None:
            return self._searched("repair", "patch", search, compressed, rule)
        model, is_pruned = self.compression.prune(reference, direction), self.settings.prune_method != "none"
        first, second = None, None
        if is_pruned:
            half, first = self._searched(
                "repair before quantization", "half", search, model, first_rule(rule), distilled_later=True
            )
            fold(model, half)
        origins = {model.path(block, name): linear.weight for block, name, linear in model.linears()}
        quantize_as(model, how, layer=direction.layer, progress=self._step("quantize what is repaired"))
        set_aside_modules(model, {path: stored.kept for path, stored in compressed.stored.items()}, origins)
        then = second_rule(rule, is_pruned=is_pruned, is_distillable=search.is_distillable)
        if then is not None:
            rest, second = self._searched("repair with the rounding", "rest", search, model, then)
            fold(model, rest)
        figures = joined(first, second)
        patch = self.workspace.stage(
            "repair", "patch.safetensors", lambda: difference(compressed, model, figures), save_patch, load_patch
        )
        restore_modules(model)
        self._write_folder(model)
        return patch, figures

    def _searched(
        self, stage: str, file: str, search: Search, model: ChatModel, rule: str, *, distilled_later: bool = False
    ) -> tuple[Patch, RepairFigures]:
        """A search as a resumable stage."""

        def compute() -> Patch:
            choice = search.choose(model, rule, self._step(stage), distilled_later=distilled_later)
            self.workspace.write(f"{file}.json", figures_of(choice), write_record)
            self.workspace.write("plan.json", choice.plan, write_record)
            return choice.patch

        patch = self.workspace.stage(stage, f"{file}.safetensors", compute, save_patch, load_patch)
        return patch, read_record(RepairFigures, self.workspace.folder / f"{file}.json")

    def _controls(self, compressed: ChatModel, reference: Reference, direction: Direction) -> list[Control]:
        """The chosen plan without its ingredients, each solved and asked the test prompts."""
        if not self.settings.controls:
            return []
        plan = read_json(self.workspace.folder / "plan.json")
        repairs = control_repairs(
            compressed,
            reference,
            RepairPlan(**plan | {"blocks": tuple(plan["blocks"])}),
            refusal_directions(reference, direction),
            measure_on_reference(compressed, reference, self._step("direction of controls")).direction.vector,
            source_layer=direction.layer,
            seed=self.settings.seed,
        )

        def measure(repair: ControlRepair) -> Control:
            with patched(compressed, repair.solve()):
                return evaluate_control(
                    repair.name,
                    repair.meaning,
                    compressed,
                    reference,
                    max_new_tokens=self.max_new_tokens,
                    batch_size=self.settings.batch_size,
                    progress=self.progress,
                )

        return [self._row(f"control {one.name}", Control, partial(measure, one)) for one in repairs]

    def _written(self, compressed: ChatModel, patch: Patch, repair: RepairFigures) -> tuple[ChatModel, RepairFigures]:
        """The repaired model as the MLX folder has it; it is written here if it is not yet."""
        if compressed.stored:
            kept = {path: stored.kept for path, stored in compressed.stored.items()}
            written = self.compression.read_quantized("mlx", kept)
            return written, dataclasses.replace(repair, sparsity_lost=pruned_weights_back(written))
        folded = fold(compressed, patch)
        self._write_folder(compressed)
        repair = dataclasses.replace(repair, sparsity_lost=folded.sparsity_lost)
        return self.compression.read(self.workspace.folder / "mlx"), repair

    def _write_folder(self, model: ChatModel) -> None:
        front = write_front_matter(self.settings.model, self._source_card())  # the exported files take it over
        self.workspace.folder_stage("write", "mlx", lambda path: save(model, path, card=front))

    def _source_card(self) -> dict[str, Any]:
        """Front matter of the dense model's card."""
        return read_card(self.dense.folder).values

    def _evaluated(self, name: str, model: ChatModel, reference: Reference, direction: Direction) -> Stage:
        return self._row(
            name,
            Stage,
            lambda: evaluate_stage(
                name,
                model,
                reference,
                direction,
                max_new_tokens=self.max_new_tokens,
                batch_size=self.settings.batch_size,
                progress=self.progress,
            ),
        )

    def _outtypes(self) -> list[str]:
        """The types to write, ``auto`` by what it means for the written folder, each once."""
        folder = self.workspace.folder / "mlx"
        return list(dict.fromkeys(resolve_outtype(folder, outtype) for outtype in self.settings.gguf))

    def _exported(
        self,
        outtype: str,
        written: ChatModel,
        reference: Reference,
        repair: RepairFigures,
        repaired: Stage,
        canaries: CanarySet,
    ) -> Stage:
        return self._row(
            f"exported:{outtype}",
            Stage,
            lambda: export_stage(
                self.settings,
                self.workspace,
                outtype,
                written,
                reference,
                repair,
                repaired,
                canaries,
                max_new_tokens=self.max_new_tokens,
                progress=self.progress,
            ),
        )

    def _row(self, name: str, kind: type[Row], compute: Callable[[], Row]) -> Row:
        """A row of the result as a resumable stage."""
        return self.workspace.stage(
            f"evaluate {name}",
            f"stages/{name.replace(':', '-').replace(' ', '-')}.json",
            compute,
            write_record,
            partial(read_record, kind),
        )

    def _step(self, stage: str) -> Callable[[int, int], None]:
        return lambda done, total: self.progress(stage, done, total)
