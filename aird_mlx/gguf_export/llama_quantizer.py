"""llama.cpp's own quantizer: K-quants and the types without a kernel here, from a file that holds the weights exactly.

Asks libllama, or the program ``llama-quantize`` where only that is installed. Either runs in a process of its own: the
library cannot be interrupted, a process can. Which tensor gets which type of the mixture is llama.cpp's decision.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from aird_mlx.errors import DependencyError, ExportError
from aird_mlx.gguf_export.imatrix import Imatrix, write_imatrix
from aird_mlx.gguf_export.outtypes import Kind, OutType, find_outtype
from aird_mlx.libllama import Quantizing, is_available, run_quantizer, run_quantizer_apart

PROGRAM = "llama-quantize"
# A line of the log: [ 1/ 21] output.weight - [ 256, 320, 1, 1], type = f16, size = 1.25 MiB -> 0.50 MiB (q6_K)
LINE = re.compile(r"\]\s+(\S+)\s+- \[.*?\], type =\s*\S+, size =\s*\S+ MiB(?: ->\s*\S+ MiB \((\w+)\))?")


@dataclass(frozen=True)
class Order:
    """What llama.cpp's quantizer is to make of a file.

    Attributes:
        outtype: the mixture.
        embedding_type, output_type: of these two tensors; None leaves them to llama.cpp.
        imatrix: what it weighs errors by; None: all inputs alike.
    """

    outtype: OutType
    embedding_type: str | None = None
    output_type: str | None = None
    imatrix: Imatrix | None = None

    @property
    def special_types(self) -> tuple[Kind | None, Kind | None]:
        """Of embedding and output."""
        embedding, output = (
            None if name is None else find_outtype(name).kind for name in (self.embedding_type, self.output_type)
        )
        return embedding, output


def check_quantizer(outtype: OutType) -> None:
    """Find out whether `quantize_file` has something to work with.

    Raises:
        DependencyError: neither llama-cpp-python nor ``llama-quantize`` is installed.
    """
    if not is_available() and shutil.which(PROGRAM) is None:
        raise DependencyError(
            f"gguf: outtype {outtype.name} is written by llama.cpp's quantizer; llama-cpp-python, or {PROGRAM} on the "
            "PATH, is needed. Run `pip install 'aird-mlx[llama]'`, or choose q4_0, q5_0 or q8_0."
        )


def quantize_file(source: Path, target: Path, order: Order) -> None:
    """Write ``source``, a GGUF file in f32, f16 or bf16, once more as ordered; ``target`` is overwritten.

    Raises:
        DependencyError: there is no quantizer.
        ExportError: it failed.
    """
    _run(source, target, order, dry_run=False)


def find_mixture(source: Path, order: Order) -> dict[str, Kind | None]:
    """Ask what `quantize_file` would do; writes nothing, reads the header alone.

    Returns:
        The tensors in the order that it writes them in, each with its type, None where that stays.

    Raises:
        DependencyError, ExportError: as `quantize_file`.
    """
    log = _run(source, source.with_name("none.gguf"), order, dry_run=True)
    kinds = {one.name.lower(): one for one in Kind}
    return {name: kinds[kind.lower()] if kind else None for name, kind in LINE.findall(log)}


def _run(source: Path, target: Path, order: Order, *, dry_run: bool) -> str:
    """Run whichever quantizer there is; what it said."""
    check_quantizer(order.outtype)
    run = _run_library if is_available() else _run_program
    return run(source, target, order, dry_run)


def _run_library(source: Path, target: Path, order: Order, dry_run: bool) -> str:
    embedding, output = (None if kind is None else int(kind) for kind in order.special_types)
    job = Quantizing(str(source), str(target), int(order.outtype.file_type), embedding, output)
    if order.imatrix is not None:
        means = {tensor: entry.means() for tensor, entry in order.imatrix.entries.items()}
        job = dataclasses.replace(job, imatrix=means, imatrix_facts=_facts(order.imatrix))
    status, log = run_quantizer(job, dry_run=True) if dry_run else run_quantizer_apart(job)  # a dry run is done at once
    if status != 0:
        raise _failed(order.outtype, log)
    return log


def _facts(imatrix: Imatrix) -> dict[str, str | int]:
    """By what the file names it, in llama.cpp's words."""
    facts: dict[str, str | int] = {"file": imatrix.name, "entries_count": len(imatrix.entries)}
    if imatrix.datasets:
        facts["dataset"] = imatrix.datasets[0]
    if imatrix.chunk_count:
        facts["chunks_count"] = imatrix.chunk_count
    return facts


def _run_program(source: Path, target: Path, order: Order, dry_run: bool) -> str:
    options = ["--dry-run"] if dry_run else []
    words = ("--token-embedding-type", "--output-tensor-type")
    for word, kind in zip(words, order.special_types, strict=True):
        options += [] if kind is None else [word, kind.name.lower()]
    with tempfile.TemporaryDirectory() as folder:
        if order.imatrix is not None:
            file = Path(folder) / Path(order.imatrix.name).name
            write_imatrix(order.imatrix, file)
            options += ["--imatrix", str(file)]
        done = subprocess.run(
            [PROGRAM, *options, str(source), str(target), order.outtype.name.upper()],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    if done.returncode != 0:
        raise _failed(order.outtype, done.stderr)
    return done.stdout + done.stderr


def _failed(outtype: OutType, log: str) -> ExportError:
    lines = [line.strip() for line in log.splitlines() if "fail" in line or "error" in line.lower()]
    reason = lines[-1].rstrip(".") if lines else "no reason given"
    return ExportError(
        f"gguf: llama.cpp's quantizer cannot write {outtype.name} ({reason[:200]}); room on the disk and a model it "
        "knows are needed. Free space, or choose another type."
    )
