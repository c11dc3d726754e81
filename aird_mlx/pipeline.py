"""The main job, top to bottom: the only place where all stages meet.

dense answers -> direction -> compress -> repair -> write -> evaluate what was written -> export -> run in llama.cpp.
Each stage leaves a file in the workspace, so an interrupted run goes on after its last finished stage.
"""

from __future__ import annotations

import dataclasses
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import mlx.core as mx

from aird_mlx import __version__
from aird_mlx.compress import prune_on_reference
from aird_mlx.controls import ControlRepair, control_repairs
from aird_mlx.direction import Direction, load_direction, save_direction
from aird_mlx.environment import describe_environment
from aird_mlx.errors import DirectionError, PromptError
from aird_mlx.evaluation import decode, generate_answers, judge_answer
from aird_mlx.gates import Limits, judge_gates
from aird_mlx.gguf_export import check_exportable, export_gguf, is_available
from aird_mlx.gguf_export.stream import hash_file
from aird_mlx.guard.canaries import read_canaries, render_canaries
from aird_mlx.guard.record import PROBE_PROMPTS, CanarySet, file_facts, make_manifest
from aird_mlx.guard.seal import seal, sidecar_of
from aird_mlx.inputs import Inputs, gather_inputs
from aird_mlx.model import COMPANION_FILES, ChatModel, load, save
from aird_mlx.patch import Patch, fold, load_patch, patched, save_patch
from aird_mlx.prompts import KINDS, check_context
from aird_mlx.pruning import check_pruning
from aird_mlx.reference import MAX_NEW_TOKENS, Reference, ask_reference
from aird_mlx.repair import TOKENS, RepairPlan, fits_in_memory
from aird_mlx.report import Control, PruningReport, RepairFigures, Report, Stage, from_json, to_json
from aird_mlx.report_page import to_markdown, to_model_card
from aird_mlx.search import choose_repair, spaces_for, tried_plans
from aird_mlx.settings import (
    Progress,
    RepairSettings,
    check_places,
    check_settings,
    output_folder,
    pruning_words,
    settings_record,
)
from aird_mlx.stages import (
    direction_figures,
    evaluate_control,
    evaluate_dense,
    evaluate_exported,
    evaluate_stage,
    gguf_path,
    measure_on_reference,
    refusal_directions,
    stage_changes,
    validation_of,
)
from aird_mlx.workspace import Workspace, read_json, write_json

__all__ = ["Plan", "RepairSettings", "output_folder", "plan_repair", "repair_model"]

# What may differ when an interrupted run is resumed: where it goes and what is exported, not what is measured.
RESUMABLE = ("resume", "out", "mlx_path", "dry_run", "gguf", "controls")
Row = TypeVar("Row", Stage, Control)
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
    inputs = _inputs(settings)
    dense = _load(settings)
    workspace = Workspace(out, _fixed(settings, dense), resume=settings.resume)
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


def plan_repair(settings: RepairSettings) -> Plan:
    """Check the settings, the model and the prompts, and say what `repair_model` would do.

    Raises:
        AirdError: as `repair_model` would on bad input.
    """
    check_settings(settings)
    out = check_places(settings)
    contrast = _inputs(settings).contrast
    dense = _load(settings)
    asked = sum(len(contrast.part(kind, "test")) for kind in KINDS)
    validated = sum(len(contrast.part(kind, "validate")) for kind in KINDS)
    stages = [
        f"answer {asked} test prompts with the dense model and measure its refusal direction",
        f"prune by {settings.prune_method}, {pruning_words(settings)}",
        f"repair by rule {settings.rule}, chosen on {validated} validation prompts",
        "write the MLX folder and evaluate what was written",
        *(f"export GGUF {kind}, run it in llama.cpp, and write its manifest" for kind in settings.gguf),
    ]
    notes = [*dense.notes, f"prompts: {contrast.origin}"]
    if settings.gguf and not is_available():
        notes.append("llama-cpp-python is not installed: exported files would not be checked")
    size = int(dense.parameters * dense.bits_per_weight / 8)
    return Plan(settings.model, stages, dense.parameters, size, str(out), notes)


def _load(settings: RepairSettings) -> ChatModel:
    dense = load(settings.model, revision=settings.revision, trust_remote_code=settings.trust_remote_code)
    if settings.prune_method != "none":
        pruning = settings.pruning
        check_pruning(dense, pruning.method, pruning.sparsity, pruning.pattern, pruning.scope, pruning.allocation)
    for outtype in settings.gguf:
        check_exportable(dense.folder, outtype)
    return dense


def _inputs(settings: RepairSettings) -> Inputs:
    given = {name: getattr(settings, name) for name in GIVEN_FILES}
    return gather_inputs(settings.model, settings.seed, limit=settings.limit, **given)


def _fixed(settings: RepairSettings, dense: ChatModel) -> dict[str, str]:
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
        repair = self._repaired(compressed, reference, direction)
        controls = self._controls(compressed, reference, direction)
        written, repair = self._written(compressed, repair)
        stages.append(self._evaluated("repaired", written, reference, direction))
        stages += [self._exported(outtype, written, reference, repair, stages[-1]) for outtype in self.settings.gguf]
        report = self._report(direction, stages, repair, controls)
        self._finish(report)
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

    def _repaired(self, compressed: ChatModel, reference: Reference, direction: Direction) -> RepairFigures:
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
                {tokens: reference.calibration(KINDS, tokens) for tokens in TOKENS},
                refusal_directions(reference, direction),
                validation_of(reference, batch_size=self.settings.batch_size),
                limits=self._limits,
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

        self.patch = self.workspace.stage("repair", "patch.safetensors", compute, save_patch, load_patch)
        return from_json(RepairFigures, (self.workspace.folder / "repair.json").read_text(encoding="utf-8"))

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

    def _written(self, compressed: ChatModel, repair: RepairFigures) -> tuple[ChatModel, RepairFigures]:
        """Fold the patch into ``compressed``, write the MLX folder, and load what was written."""
        folded = fold(compressed, self.patch)
        self.workspace.folder_stage("write", "mlx", lambda path: save(compressed, path))
        repair = dataclasses.replace(repair, sparsity_lost=folded.sparsity_lost)
        return self._load_copy(self.workspace.folder / "mlx"), repair

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
        name = "demo" if self.settings.model == "demo" else "built-in"
        prompts = [one.prompt for one in read_canaries(name)]
        rendered = render_canaries(self.dense.tokenizer, prompts)
        length = min(self.max_new_tokens, MAX_NEW_TOKENS)
        check_context(rendered, length, self.dense.context_length, prompts)

        def compute() -> list[str]:
            answers = generate_answers(
                self.dense,
                rendered,
                max_new_tokens=length,
                batch_size=self.settings.batch_size,
                progress=self._step("canaries of the dense model"),
            )
            return [judge_answer(decode(self.dense, answer))[0] for answer in answers]

        letters = self.workspace.stage("canaries", "canaries.json", compute, write_json, read_json)
        return CanarySet(name, rendered, "".join(letters), length)

    def _exported(
        self, outtype: str, written: ChatModel, reference: Reference, repair: RepairFigures, repaired: Stage
    ) -> Stage:
        canaries = self._canaries()

        def compute() -> Stage:
            with self.workspace.guarding():
                exported = export_gguf(
                    self.workspace.folder / "mlx",
                    gguf_path(self.workspace.folder, self._stem, outtype),
                    outtype,
                    name=self._stem,
                    extra_metadata={"aird.version": __version__, "aird.repair.rule": repair.rule},
                    progress=self._step(f"export {outtype}"),
                )
            stage = evaluate_exported(
                exported, written, reference, max_new_tokens=self.max_new_tokens, progress=self.progress
            )
            manifest = make_manifest(
                exported.path,
                file_facts(self.settings, repair, stage if stage.parity else repaired),
                self._probe_prompts(reference, "find"),
                self._probe_prompts(reference, "validate"),
                canaries,
                self._step(f"probe of {outtype}"),
            )
            with self.workspace.guarding():
                return dataclasses.replace(stage, root=seal(exported.path, manifest))

        return self._row(f"exported:{outtype}", Stage, compute)

    def _probe_prompts(self, reference: Reference, part: str) -> dict[str, list[list[int]]]:
        return {kind: reference.prompts(kind, part, PROBE_PROMPTS) for kind in KINDS}

    def _row(self, name: str, kind: type[Row], compute: Callable[[], Row]) -> Row:
        """A row of the result as a resumable stage."""
        return self.workspace.stage(
            f"evaluate {name}",
            f"stages/{name.replace(':', '-').replace(' ', '-')}.json",
            compute,
            lambda row, path: write_json(dataclasses.asdict(row), path),
            lambda path: from_json(kind, path.read_text(encoding="utf-8")),
        )

    @property
    def _limits(self) -> Limits:
        return Limits(self.settings.max_over_refusal / 100, self.settings.max_perplexity)

    @property
    def _stem(self) -> str:
        return f"{Path(self.settings.model).name}-repaired"

    def _step(self, stage: str) -> Callable[[int, int], None]:
        return lambda done, total: self.progress(stage, done, total)

    def _report(
        self, direction: Direction, stages: list[Stage], repair: RepairFigures, controls: list[Control]
    ) -> Report:
        pruned = self._pruning()
        settings = settings_record(self.settings)
        settings = {name: value for name, value in settings.items() if name not in ("resume", "dry_run")}
        exported = (note for stage in stages for note in stage.notes)
        out = self.workspace.out
        written = {"mlx": str(self.settings.mlx_path or out / "mlx"), "report": str(out / "report.json")}
        for kind in self.settings.gguf:
            path = gguf_path(out, self._stem, kind)
            written |= {f"gguf {kind}": str(path), f"hashes {kind}": str(sidecar_of(path))}
        return Report(
            model=self.settings.model,
            settings=settings,
            environment=describe_environment(self.settings.seed),
            direction=direction_figures(direction, 1.0),
            stages=stages,
            repair=repair,
            pruning=pruned,
            gates=judge_gates(stages, repair, allow_dense=self.settings.allow_dense, limits=self._limits),
            changes=stage_changes(stages),
            controls=controls,
            written=written,
            notes=[
                *self.dense.notes,
                *(pruned.notes if pruned else []),
                f"prompts: {self.inputs.contrast.origin}",
                *dict.fromkeys(exported),
            ],
            timings=self.workspace.timings,
            peak_memory_bytes=_peak_memory(),
        )

    def _finish(self, report: Report) -> None:
        """Write the reports and the model card, and give the folders their final names."""
        folder = self.workspace.folder
        with self.workspace.guarding():
            (folder / "report.json").write_text(to_json(report), encoding="utf-8")
            (folder / "report.md").write_text(to_markdown(report), encoding="utf-8")
            (folder / "mlx" / "README.md").write_text(to_model_card(report), encoding="utf-8")
        self.workspace.finish(
            leave_out=(
                "stages",
                "compressed.safetensors",
                "answers.json",
                "canaries.json",
                "repair.json",
                "plan.json",
                "pruning.json",
            ),
            elsewhere={} if self.settings.mlx_path is None else {"mlx": self.settings.mlx_path},
        )


def _save_arrays(arrays: dict[str, mx.array], path: Path) -> None:
    mx.save_safetensors(str(path), arrays)


def _load_arrays(path: Path) -> dict[str, mx.array]:
    arrays = mx.load(str(path))
    assert isinstance(arrays, dict)
    return arrays


def _peak_memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
