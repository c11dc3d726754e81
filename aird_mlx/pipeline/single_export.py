"""A model folder as a GGUF file, without a repair: written, run in llama.cpp beside MLX, and sealed.

The file gets its name when all that is done. One that llama.cpp runs otherwise than MLX is written too, since a coarse
type may be what was wanted, but its manifest says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from aird_mlx.chat_apps import check_new_chat_apps, check_new_place, lm_studio_place
from aird_mlx.errors import AirdError, UsageError
from aird_mlx.gates import judge_export
from aird_mlx.gguf_export import NOT_INSTALLED, GgufFile, check_new_file, is_available
from aird_mlx.guard.manifest import TEMPLATE_KEY, Manifest
from aird_mlx.guard.record import parity_facts, source_facts
from aird_mlx.guard.seal import seal
from aird_mlx.guard.split import check_no_parts, export_in_parts
from aird_mlx.guard.structure import read_structure
from aird_mlx.model import load, loaded_bytes, usable_memory
from aird_mlx.pipeline.canary_run import CanaryRun, run_canaries
from aird_mlx.report import Gate, RefusalRates, Stage
from aird_mlx.settings import Progress
from aird_mlx.stages import parity_figures
from aird_mlx.workspace import check_writable, writing_to

NO_PROBE = "`aird-mlx export` fits none; `aird-mlx repair` does"


def check_export_places(
    files: Iterable[Path], model: str, *, in_parts: bool = False, chat_apps: bool = False, lm_studio: Path | None = None
) -> None:
    """Find out before the first file of an export is written whether there is a place for each.

    Args:
        files: all that are to be written, or what their parts are named after.
        model: as the user gave it.
        in_parts: whether they are split.
        chat_apps: whether files for chat programs are written beside each.
        lm_studio: LM Studio's folder of models, which they are put into.

    Raises:
        ExportError, OutputError: something is there already, or nothing can be written there.
        UsageError: two files would have one place in LM Studio.
    """
    placed: set[Path] = set()
    for file in files:
        check_no_parts(file) if in_parts else check_new_file(file, {})
        check_writable(file, "--outfile")
        if chat_apps:
            check_new_chat_apps(file)
        if lm_studio is None:
            continue
        place = lm_studio_place(file, lm_studio, model)
        check_no_parts(place) if in_parts else check_new_place(place)
        check_writable(place, "--lm-studio")
        if place in placed:
            raise UsageError(
                f"lm-studio: {place} is where two of the files would go; a name for each is needed. Put {{ftype}} in "
                "the name of --outfile, not only in its folder."
            )
        placed.add(place)


@dataclass(frozen=True)
class ExportedFile:
    """An exported file, and what llama.cpp made of it.

    Attributes:
        written: the file.
        row: its figures: canary prompts refused, parity, or why it was not run.
        gates: of its parity; none if it was not run.
    """

    written: GgufFile
    row: Stage
    gates: list[Gate]

    @property
    def exit_code(self) -> int:
        """0 if every gate is passed, else 4."""
        return 0 if all(gate.passed for gate in self.gates) else 4


@dataclass
class Exporter:
    """Writes one model's files, each held against the same answers in MLX, which it gives once there is a file.

    Attributes:
        model: as the user gave it.
        folder: where its files are.
        revision: of a hub model.
        check: whether files shall be run, where that can be done.
        trust_remote_code: see `load`.
    """

    model: str
    folder: Path
    revision: str | None
    check: bool
    trust_remote_code: bool = False
    _beside: CanaryRun | str = field(default="", init=False)  # the model's answers, or why files are not run

    def export(self, outfile: Path, outtype: str, *, progress: Progress, **how: Any) -> ExportedFile:
        """Write, run and seal one file.

        Args:
            outfile: must not exist.
            outtype, how: as for `export_in_parts`.
            progress: called with (stage, steps done, steps).

        Raises:
            AirdError: as `export_in_parts`. ParityError: llama.cpp cannot run the file. Nothing is left behind.
        """
        checked: list[tuple[Stage, list[Gate]]] = []

        def finish(written: GgufFile) -> None:
            self._beside = self._beside or self._answer_in_mlx(progress)
            row, gates = _run(written, self._beside, progress)
            checked.append((row, gates))
            facts = source_facts(self.model, self.revision) | parity_facts(row, gates) | {"sparsity": written.sparsity}
            template = read_structure(written.path).text(TEMPLATE_KEY)
            with writing_to(outfile, "--outfile"):
                seal(written.path, Manifest(facts, template, no_probe=NO_PROBE))

        written = export_in_parts(
            self.folder, outfile, outtype, finish=finish, progress=partial(progress, f"export {outtype}"), **how
        )
        return ExportedFile(written, *checked[0])

    def _answer_in_mlx(self, progress: Progress) -> CanaryRun | str:
        """The canaries as the model answers them, or why it is not asked: files are then written and not run."""
        if not self.check:
            return "--no-check was given"
        if not is_available():
            return NOT_INSTALLED
        needed, usable = loaded_bytes(self.folder), usable_memory()
        if needed > usable:
            return f"the model takes {needed / 1e9:.1f} GB in MLX, and {usable / 1e9:.1f} GB can be used here"
        try:
            loaded = load(self.folder, trust_remote_code=self.trust_remote_code)
            return run_canaries(self.model, loaded, partial(progress, "canaries in MLX"))
        except AirdError as error:  # MLX cannot run it, or not as a chat model
            return " ".join(str(error).split())


def _run(written: GgufFile, beside: CanaryRun | str, progress: Progress) -> tuple[Stage, list[Gate]]:
    """A file's row and gates: what it makes of the canaries in llama.cpp, or why it was not asked."""
    name, bits = f"exported:{written.outtype}", 8 * written.size_bytes / written.parameters
    row = Stage(name, RefusalRates(None, None), None, written.sparsity, bits)
    if isinstance(beside, str):
        return dataclasses.replace(row, not_checked=beside), []
    running = partial(progress, f"run {written.outtype} in llama.cpp")
    refusal = beside.refusals_in_llama(written.path, progress=running)
    row = dataclasses.replace(row, refusal=refusal, parity=parity_figures(beside.parity(written.path)))
    return row, judge_export(row, beside.refusals)
