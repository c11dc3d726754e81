"""A model folder as a GGUF file, without a repair: written, run in llama.cpp beside MLX, and sealed.

The file gets its name when all that is done. One that llama.cpp runs otherwise than MLX is written too, since a coarse
type may be what was wanted, but its manifest says so.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from aird_mlx import __version__
from aird_mlx.errors import AirdError
from aird_mlx.gates import judge_export
from aird_mlx.gguf_export import GgufFile, is_available
from aird_mlx.guard.cursor import Scalar
from aird_mlx.guard.manifest import Manifest
from aird_mlx.guard.record import parity_facts
from aird_mlx.guard.seal import seal
from aird_mlx.guard.split import export_in_parts
from aird_mlx.guard.structure import read_structure
from aird_mlx.model import load, loaded_bytes, usable_memory
from aird_mlx.pipeline.canary_run import CanaryRun, run_canaries
from aird_mlx.report import Gate, RefusalRates, Stage
from aird_mlx.settings import Progress
from aird_mlx.stages import parity_figures
from aird_mlx.workspace import writing_to

NO_PROBE = "`aird-mlx export` fits none; `aird-mlx repair` does"


@dataclass(frozen=True)
class CheckedFile:
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


@dataclass(frozen=True)
class Exporter:
    """Writes one model's files, each held against the same answers in MLX.

    Attributes:
        model: as the user gave it.
        folder: where its files are.
        revision: of a hub model.
        beside: the model's own answers; None where files are not run, and ``not_checked`` then says why.
    """

    model: str
    folder: Path
    revision: str | None
    beside: CanaryRun | None
    not_checked: str | None = None

    def export(self, outfile: Path, outtype: str, *, progress: Progress, **how: Any) -> CheckedFile:
        """Write, run and seal one file.

        Args:
            outfile: must not exist.
            outtype, how: as for `export_in_parts`.
            progress: called with (stage, steps done, steps).

        Raises:
            AirdError: as `export_in_parts`. ParityError: llama.cpp cannot run the file. Nothing is left behind.
        """
        rows: list[Stage] = []

        def finish(written: GgufFile) -> None:
            rows.append(self._run(written, progress))
            facts: dict[str, Scalar] = {
                "version": __version__,
                "source.model": Path(self.model).name if Path(self.model).exists() else self.model,
                "source.revision": self.revision or "",
                "sparsity": written.sparsity,
            }
            template = read_structure(written.path).text("tokenizer.chat_template")
            facts |= parity_facts(rows[0], self._source)
            with writing_to(outfile, "--outfile"):
                seal(written.path, Manifest(facts, template, no_probe=NO_PROBE))

        written = export_in_parts(
            self.folder, outfile, outtype, finish=finish, progress=partial(progress, f"export {outtype}"), **how
        )
        return CheckedFile(written, rows[0], judge_export(rows[0], self._source))

    @property
    def _source(self) -> Stage:
        return Stage("mlx", RefusalRates(None, None) if self.beside is None else self.beside.refusals, None, 0.0, 0.0)

    def _run(self, written: GgufFile, progress: Progress) -> Stage:
        name, bits = f"exported:{written.outtype}", 8 * written.size_bytes / written.parameters
        row = Stage(name, RefusalRates(None, None), None, written.sparsity, bits, not_checked=self.not_checked)
        if self.beside is None:
            return row
        refusals = self.beside.refusals_in_llama(
            written.path, progress=partial(progress, f"run {written.outtype} in llama.cpp")
        )
        return dataclasses.replace(row, refusal=refusals, parity=parity_figures(self.beside.parity(written.path)))


def prepare_exports(model: str, folder: Path, *, revision: str | None, check: bool, progress: Progress) -> Exporter:
    """Let a model answer the canary prompts in MLX once, for all its files to be held against.

    Args:
        model: as the user gave it; ``folder``: where its files are.
        revision: of a hub model.
        check: whether files shall be run. They are not, and say so, where llama-cpp-python is missing, the model does
            not fit in memory beside them, or MLX cannot run it as a chat model.
        progress: called with (stage, steps done, steps).
    """
    needed, usable = loaded_bytes(folder), usable_memory()
    why, beside = None, None
    if not check:
        why = "--no-check was given"
    elif not is_available():
        why = "llama-cpp-python is not installed (pip install 'aird-mlx[llama]')"
    elif needed > usable:
        why = f"the model takes {needed / 1e9:.1f} GB in MLX, and {usable / 1e9:.1f} GB can be used here"
    else:
        try:
            beside = run_canaries(model, load(folder), partial(progress, "canaries in MLX"))
        except AirdError as error:
            why = " ".join(str(error).split())
    return Exporter(model, folder, revision, beside, why)
