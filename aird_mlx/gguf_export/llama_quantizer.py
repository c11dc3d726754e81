"""llama.cpp's own quantizer: K-quants and the types without a kernel here, from a file that holds the weights exactly.

Calls libllama through llama-cpp-python, or the program ``llama-quantize`` where only that is installed. Which tensor
gets which type of the mixture is llama.cpp's decision. Source: ``llama_model_quantize`` in ``llama.h``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from aird_mlx.errors import DependencyError, ExportError
from aird_mlx.gguf_export.library import capture_log, is_available, load_library
from aird_mlx.gguf_export.outtypes import Kind, OutType, find_outtype

PROGRAM = "llama-quantize"
# A line of the log: [ 1/ 21] output.weight - [ 256, 320, 1, 1], type = f16, size = 1.25 MiB -> 0.50 MiB (q6_K)
LINE = re.compile(r"\]\s+(\S+)\s+- \[.*?\], type =\s*\S+, size =\s*\S+ MiB(?: ->\s*\S+ MiB \((\w+)\))?")


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


def quantize_file(
    source: Path, target: Path, outtype: OutType, embedding_type: str | None = None, output_type: str | None = None
) -> None:
    """Write ``source`` once more in another type.

    Args:
        source: a GGUF file in f32, f16 or bf16.
        target: overwritten.
        outtype: what to make of it.
        embedding_type, output_type: of these two tensors; None leaves them to llama.cpp.

    Raises:
        DependencyError: there is no quantizer.
        ExportError: it failed.
    """
    _run(source, target, outtype, embedding_type, output_type, dry_run=False)


def find_mixture(
    source: Path, outtype: OutType, embedding_type: str | None = None, output_type: str | None = None
) -> dict[str, Kind]:
    """Ask which tensors `quantize_file` would change, and to which type; writes nothing.

    Args:
        source: a GGUF file in f32, f16 or bf16; only its header is read.
        outtype, embedding_type, output_type: as for `quantize_file`.

    Raises:
        DependencyError, ExportError: as `quantize_file`.
    """
    nowhere = source.with_name("none.gguf")
    log = _run(source, nowhere, outtype, embedding_type, output_type, dry_run=True)
    kinds = {one.name.lower(): one for one in Kind}
    return {name: kinds[kind.lower()] for name, kind in LINE.findall(log) if kind}


def _run(
    source: Path, target: Path, outtype: OutType, embedding_type: str | None, output_type: str | None, *, dry_run: bool
) -> str:
    """Run whichever quantizer there is; what it said."""
    check_quantizer(outtype)
    embedding, output = (None if name is None else find_outtype(name).kind for name in (embedding_type, output_type))
    run = _run_library if is_available() else _run_program
    return run(source, target, outtype, embedding, output, dry_run)


def _run_library(
    source: Path, target: Path, outtype: OutType, embedding: Kind | None, output: Kind | None, dry_run: bool
) -> str:
    library = load_library()
    settings = library.llama_model_quantize_default_params()
    settings.ftype = int(outtype.file_type)
    settings.nthread = os.cpu_count() or 1
    settings.dry_run = dry_run
    if embedding is not None:
        settings.token_embedding_type = int(embedding)
    if output is not None:
        settings.output_tensor_type = int(output)
    with capture_log() as log:
        status = library.llama_model_quantize(str(source).encode(), str(target).encode(), settings)
    text = "".join(log)
    if status != 0:
        raise _failed(outtype, text)
    return text


def _run_program(
    source: Path, target: Path, outtype: OutType, embedding: Kind | None, output: Kind | None, dry_run: bool
) -> str:
    options = ["--dry-run"] if dry_run else []
    for word, kind in (("--token-embedding-type", embedding), ("--output-tensor-type", output)):
        options += [] if kind is None else [word, kind.name.lower()]
    done = subprocess.run(
        [PROGRAM, *options, str(source), str(target), outtype.name.upper()],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise _failed(outtype, done.stderr)
    return done.stdout + done.stderr


def _failed(outtype: OutType, log: str) -> ExportError:
    lines = [line.strip() for line in log.splitlines() if "fail" in line or "error" in line.lower()]
    reason = lines[-1].rstrip(".") if lines else "no reason given"
    return ExportError(
        f"gguf: llama.cpp's quantizer cannot write {outtype.name} ({reason[:200]}); room on the disk and a model it "
        "knows are needed. Free space, or choose another type."
    )
