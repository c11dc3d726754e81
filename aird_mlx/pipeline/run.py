"""One run of the main job, stage by stage, each resumable."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx

from aird_mlx.compress import prune_on_reference
from aird_mlx.controls import ControlRepair, control_repairs
from aird_mlx.direction import Direction, load_direction, save_direction
from aird_mlx.errors import DirectionError, PromptError
from aird_mlx.gguf_export.general import read_card
from aird_mlx.guard.record import CanarySet
from aird_mlx.inputs import Inputs
from aird_mlx.model import ChatModel, load, save
from aird_mlx.patch import Patch, fold, load_patch, patched, save_patch
from aird_mlx.pipeline.export import canary_set, export_stage, judge_canaries
from aird_mlx.pipeline.plan import fixed_facts, inputs_of, load_dense
from aird_mlx.pipeline.result import finish, limits_of, make_report
from aird_mlx.reference import MAX_NEW_TOKENS, Reference, ask_reference
from aird_mlx.repair import RepairPlan, fits_in_memory
from aird_mlx.report import Control, PruningReport, RepairFigures, Report, Stage, from_json
from aird_mlx.report_page import write_front_matter
from aird_mlx.search import choose_repair, spaces_for, tried_plans
from aird_mlx.settings import (
    Progress,
    RepairSettings,
    check_places,
    check_settings,
)
from aird_mlx.stages import (
    calibrations,
    evaluate_control,
    evaluate_dense,
    evaluate_stage,
    measure_on_reference,
    refusal_directions,
    validation_of,
)
from aird_mlx.workspace import Workspace, read_json, write_json

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
    workspace = Workspace(out, fixed_facts(settings, dense), resume=settings.resume)
    try:
        return _Run(settings, workspace, dense, inputs, progress).run()
    except (DirectionError, PromptError):  # the answers that are kept could only lead here again
        workspace.discard()
        raise
    except BaseException as error:
        if not workspace.has_finished_stages():
            workspace.discard()
        elif isinstance(error, KeyboardInterrupt) and workspace.folder.exists():
            error.args = (f"the finished stages are kept in {workspace.folder}. Run again with --resume to go on.",)
        raise
    finally:
        workspace.close()


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

    def run(self) -> Report:
        """All stages in order, then the report, then the final name."""
        reference = self._reference()
        direction = self._direction(reference)
        compressed = self._compressed(reference, direction)
        stages = [
            self._row("dense", Stage, lambda: evaluate_dense(reference, direction)),
            self._evaluated("compressed", compressed, reference, direction),
        ]
        patch, repair = self._repaired(compressed, reference, direction)
        controls = self._controls(compressed, reference, direction)
        written, repair = self._written(compressed, patch, repair)
        stages.append(self._evaluated("repaired", written, reference, direction))
        if self.settings.gguf:
            canaries = self._canaries()
            repaired = stages[-1]
            stages += [
                self._exported(outtype, written, reference, repair, repaired, canaries)
                for outtype in self.settings.gguf
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
            pruned=self._pruning(),
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

    def _compressed(self, reference: Reference, direction: Direction) -> ChatModel:
        """A second copy of the model, pruned; by default calibrated on harmless text only, as by a stock compressor."""
        model = self._load_copy(self.settings.model)

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
                self.workspace.write("pruning.json", dataclasses.asdict(pruned), write_json)
            return {f"{block}.{name}": linear.weight for block, name, linear in model.linears()}

        weights = self.workspace.stage("compress", "compressed.safetensors", compute, _save_arrays, _load_arrays)
        for block, name, linear in model.linears():
            linear.weight = weights[f"{block}.{name}"]
        return model

    def _pruning(self) -> PruningReport | None:
        path = self.workspace.folder / "pruning.json"
        return from_json(PruningReport, path.read_text(encoding="utf-8")) if path.is_file() else None

    def _load_copy(self, model: str | Path) -> ChatModel:
        """Another copy of the dense model, or what was written from it: loaded with the same permissions."""
        return load(model, revision=self.settings.revision, trust_remote_code=self.settings.trust_remote_code)

    def _repaired(
        self, compressed: ChatModel, reference: Reference, direction: Direction
    ) -> tuple[Patch, RepairFigures]:
        """Choose and solve the patch."""

        def compute() -> Patch:
            spaces = spaces_for(
                self.settings.rule,
                source_layer=direction.layer,
                blocks=len(compressed.blocks),
                inside_mask=not self.settings.allow_dense,
                distillable=fits_in_memory(self.dense),
            )
            choice = choose_repair(
                compressed,
                self.dense,
                spaces,
                calibrations(reference),
                refusal_directions(reference, direction),
                validation_of(reference, batch_size=self.settings.batch_size),
                limits=limits_of(self.settings),
                progress=self._step("repair"),
            )
            figures = RepairFigures(
                rule=choice.patch.rule,
                layers=choice.patch.layers,
                strength=choice.patch.strength,
                rank=choice.patch.rank,
                sparsity_lost=0.0,  # counted when it is folded
                ridge=choice.patch.ridge,
                beta=choice.patch.beta,
                why=choice.why,
                tried=tried_plans(choice.trials, choice.front),
            )
            self.workspace.write("repair.json", dataclasses.asdict(figures), write_json)
            self.workspace.write("plan.json", dataclasses.asdict(choice.plan), write_json)
            return choice.patch

        patch = self.workspace.stage("repair", "patch.safetensors", compute, save_patch, load_patch)
        figures = (self.workspace.folder / "repair.json").read_text(encoding="utf-8")
        return patch, from_json(RepairFigures, figures)

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
        """Fold the patch into ``compressed``, write the MLX folder, and load what was written."""
        folded = fold(compressed, patch)
        front = write_front_matter(self.settings.model, self._source_card())  # the exported files take it over
        self.workspace.folder_stage("write", "mlx", lambda path: save(compressed, path, card=front))
        repair = dataclasses.replace(repair, sparsity_lost=folded.sparsity_lost)
        return self._load_copy(self.workspace.folder / "mlx"), repair

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

    def _canaries(self) -> CanarySet:
        """The canary prompts and what the dense model makes of them."""
        canaries = canary_set(self.settings.model, self.dense, self.max_new_tokens)
        letters = self.workspace.stage(
            "canaries",
            "canaries.json",
            lambda: judge_canaries(
                self.dense,
                canaries,
                batch_size=self.settings.batch_size,
                progress=self._step("canaries of the dense model"),
            ),
            write_json,
            read_json,
        )
        return dataclasses.replace(canaries, dense="".join(letters))

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
            lambda row, path: write_json(dataclasses.asdict(row), path),
            lambda path: from_json(kind, path.read_text(encoding="utf-8")),
        )

    def _step(self, stage: str) -> Callable[[int, int], None]:
        return lambda done, total: self.progress(stage, done, total)


def _save_arrays(arrays: dict[str, mx.array], path: Path) -> None:
    mx.save_safetensors(str(path), arrays)


def _load_arrays(path: Path) -> dict[str, mx.array]:
    arrays = mx.load(str(path))
    assert isinstance(arrays, dict)
    return arrays
