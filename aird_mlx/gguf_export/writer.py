"""The export: one model folder in, one GGUF file out, tensor by tensor.

Plans first (headers, config, tokenizer), so that whatever must be refused is refused before a file exists; then
streams one tensor at a time into ``<outfile>.partial`` and renames it when it is whole. Knows nothing about running
the file: that is `runtime` and `parity`. Source: GGUF v3 as PyPI's ``gguf`` writes it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from aird_mlx.errors import ExportError, ModelError
from aird_mlx.gguf_export import metadata, tensors, tokenizer

FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
EXTRA_PREFIX = "aird."
SEAL_KEY = "aird.hash.root"  # of a file whose manifest has been written


@dataclass(frozen=True)
class GgufFile:
    """A written file.

    Attributes:
        path: where it is.
        outtype: f32, f16 or q8_0.
        tensors: how many it holds.
        parameters: how many weights they hold together.
        size_bytes: of the file.
        sha256: of the whole file, hexadecimal.
        sparsity: share of exact zeros among the weights of the blocks' linears, counted in what was written.
        dequantized: the folder held MLX-quantized weights, which were dequantized on the way.
        pre_tokenizer: llama.cpp's name for it, None for sentencepiece.
        notes: where llama.cpp will differ from MLX, one sentence each; empty when nothing is known.
    """

    path: Path
    outtype: str
    tensors: int
    parameters: int
    size_bytes: int
    sha256: str
    sparsity: float
    dequantized: bool = False
    pre_tokenizer: str | None = None
    notes: tuple[str, ...] = ()


def export_gguf(
    folder: Path,
    outfile: Path,
    outtype: str,
    *,
    name: str | None = None,
    extra_metadata: Mapping[str, str | int | float | bool] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> GgufFile:
    """Write a model folder as one GGUF file that llama.cpp runs.

    Args:
        folder: an MLX or Hugging Face model: ``config.json``, ``*.safetensors``, tokenizer files.
        outfile: must not exist, unless it carries the same ``extra_metadata``: an interrupted run's own file, which
            is replaced. Written as ``<outfile>.partial`` first.
        outtype: f32, f16 or q8_0; norms and biases are always f32.
        name: for ``general.name``; the folder's name by default.
        extra_metadata: further keys, each starting with ``aird.``.
        progress: called with (tensors written, tensors in all) after each tensor.

    Raises:
        ModelError: the folder cannot be read, or its parts contradict each other.
        ExportError: ``outfile`` exists, the model has no equal in llama.cpp, a weight does not fit the type, or the
            file cannot be written. Nothing is left behind.
        DependencyError: the tokenizer needs sentencepiece and it is not installed.
    """
    if os.path.lexists(outfile) and not _carries(outfile, extra_metadata or {}):
        raise ExportError(
            f"gguf: {outfile} exists already; a new file is needed. Choose another outfile, or remove it."
        )
    prepared = _prepare(folder, outtype)
    hyperparameters, vocabulary, plan = prepared.hyperparameters, prepared.vocabulary, prepared.plan
    factors = metadata.rope_frequency_factors(hyperparameters)

    writer = gguf.GGUFWriter(None, hyperparameters.architecture)
    writer.add_type("model")
    writer.add_name(name or folder.resolve().name)
    writer.add_size_label(gguf.size_label(sum(tensor.parameters for tensor in plan), 0, 0, 0))
    licence = metadata.read_licence(folder)
    if licence is not None:
        writer.add_license(licence)
    writer.add_file_type(int(FILE_TYPES[outtype]))
    writer.add_quantization_version(metadata.QUANTIZATION_VERSION)
    metadata.add_hyperparameters(writer, hyperparameters, plan[0].shape[0])
    tokenizer.add_vocabulary(writer, vocabulary)
    add_extra_metadata(writer, extra_metadata or {})
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes, tensors.F32)
    for planned in plan:
        writer.add_tensor_info(
            planned.name, planned.shape, np.dtype(np.float32), planned.size_bytes, raw_dtype=planned.type
        )
    reader = tensors.TensorReader(prepared.stored)
    sparsity = _write(writer, outfile, factors, plan, reader, progress)
    return GgufFile(
        path=outfile,
        outtype=outtype,
        tensors=len(plan) + (factors is not None),
        parameters=sum(tensor.parameters for tensor in plan),
        size_bytes=outfile.stat().st_size,
        sha256=hash_file(outfile),
        sparsity=sparsity,
        dequantized=any(tensor.quantization is not None for tensor in plan),
        pre_tokenizer=vocabulary.pre,
        notes=prepared.notes,
    )


def check_exportable(folder: Path, outtype: str) -> tuple[str, ...]:
    """Find out before a long run whether `export_gguf` could write this model; no weight is read.

    Returns:
        In sentences, where llama.cpp will differ from MLX.

    Raises:
        ModelError, ExportError, DependencyError: as `export_gguf` would, but for what only the weights show.
    """
    return _prepare(folder, outtype).notes


@dataclass(frozen=True)
class _Prepared:
    """Everything about a file but its weights."""

    hyperparameters: metadata.Hyperparameters
    stored: dict[str, tensors.StoredTensor]
    plan: list[tensors.PlannedTensor]
    vocabulary: tokenizer.Vocabulary
    notes: tuple[str, ...]


def _prepare(folder: Path, outtype: str) -> _Prepared:
    if not folder.is_dir():
        raise ModelError(f"model: {folder} is not a folder; a local model folder is needed. Check the path.")
    config = metadata.read_json(folder / "config.json")
    if not config:
        raise ModelError(f"model: {folder} has no config.json; a model folder is needed. Check the path.")
    hyperparameters = metadata.read_hyperparameters(config)
    stored = tensors.read_stored_tensors(folder)
    quantization = config.get("quantization") or config.get("quantization_config")
    plan = tensors.plan_tensors(stored, hyperparameters, outtype, quantization)
    vocabulary = tokenizer.read_vocabulary(folder, plan[0].shape[0])
    notes = [*metadata.find_limits(config, hyperparameters), *vocabulary.notes, *_notes_on_weights(plan, outtype)]
    if not vocabulary.chat_templates.get("default"):
        notes.append("the folder has no chat template, so neither has the file: chat programs will guess one")
    return _Prepared(hyperparameters, stored, plan, vocabulary, tuple(notes))


def add_extra_metadata(writer: gguf.GGUFWriter, extra: Mapping[str, str | int | float | bool]) -> None:
    """Write the project's own keys: strings, whole numbers (64 bit), floats (64 bit) and booleans.

    Raises:
        ExportError: a key does not start with ``aird.``, or a value is of another type; llama.cpp's interface
            reads no arrays.
    """
    kinds = {
        bool: gguf.GGUFValueType.BOOL,
        str: gguf.GGUFValueType.STRING,
        int: gguf.GGUFValueType.INT64,
        float: gguf.GGUFValueType.FLOAT64,
    }
    for key, value in extra.items():
        if not key.startswith(EXTRA_PREFIX) or type(value) not in kinds:
            raise ExportError(
                f"gguf: metadata {key!r} of type {type(value).__name__}; a key that starts with {EXTRA_PREFIX} and a "
                "string, number or boolean are needed. Rename it, or write it as text."
            )
        writer.add_key_value(key, value, kinds[type(value)])


def _carries(file: Path, extra: Mapping[str, str | int | float | bool]) -> bool:
    """Whether a GGUF file holds exactly these keys of the project's own, at least one, or a manifest with them."""
    try:
        fields = gguf.GGUFReader(file).fields if extra and file.is_file() else {}
        ours = {key: fields[key].contents() for key in fields if key.startswith(EXTRA_PREFIX)}
        sealed = SEAL_KEY in ours
        return {key: value for key, value in ours.items() if key in extra or not sealed} == extra != {}
    except (OSError, ValueError, IndexError, KeyError):
        return False


def hash_file(path: Path) -> str:
    """The sha256 of a file's bytes, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as opened:
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _notes_on_weights(plan: list[tensors.PlannedTensor], outtype: str) -> list[str]:
    dequantized = [planned for planned in plan if planned.quantization is not None]
    if not dequantized:
        return []
    return [f"{len(dequantized)} MLX-quantized tensors were dequantized and written as {outtype}"]


def _write(
    writer: gguf.GGUFWriter,
    outfile: Path,
    factors: np.ndarray | None,
    plan: list[tensors.PlannedTensor],
    reader: tensors.TensorReader,
    progress: Callable[[int, int], None] | None,
) -> float:
    """Write the file whole or not at all; gives the share of zeros among the linears' weights as written."""
    zeros = weights = 0
    partial = outfile.with_name(outfile.name + ".partial")
    needed = sum(planned.size_bytes for planned in plan)
    new_folders = [folder for folder in outfile.parents if not folder.exists()]  # the innermost first
    try:
        outfile.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(outfile.parent).free
        if free < needed:
            raise OSError(errno.ENOSPC, f"{free} bytes free")
        writer.write_header_to_file(partial)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors)
        for done, planned in enumerate(plan, start=1):
            encoded = tensors.encode_tensor(reader.read(planned), planned.type)
            writer.write_tensor_data(encoded)
            if planned.is_block_linear:
                zeros += tensors.count_zeros(encoded, planned.type)
                weights += planned.parameters
            if progress is not None:
                progress(done, len(plan))
        writer.close()
        partial.replace(outfile)
        return zeros / max(weights, 1)
    except OSError as error:
        # numpy reports a short write without an error number
        if error.errno == errno.ENOSPC or error.errno is None:
            raise ExportError(
                f"gguf: the disk of {outfile.parent} is full, or a size limit is reached ({error}); "
                f"{needed} bytes are needed. "
                "Free space, or choose a smaller type."
            ) from error
        raise ExportError(f"gguf: {partial} cannot be written ({error}); a writable folder is needed. "
                          "Choose another outfile.") from error  # fmt: skip
    finally:  # also after KeyboardInterrupt
        with contextlib.suppress(OSError):  # closing flushes, which fails again on a full disk
            writer.close()
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
            for created in new_folders:
                created.rmdir()  # fails, and ends this, where the file was written
