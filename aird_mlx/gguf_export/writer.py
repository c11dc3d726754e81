"""The export: one model folder in, one GGUF file out, tensor by tensor.

Plans first (headers, config, tokenizer), so that whatever must be refused is refused before a file exists; then
streams one tensor at a time into ``<outfile>.partial`` and renames it when it is whole. Knows nothing about running
the file: that is `runtime` and `parity`. Source: GGUF v3 as PyPI's ``gguf`` writes it.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from aird_mlx.errors import ExportError, ModelError
from aird_mlx.gguf_export import metadata, tensors, tokenizer
from aird_mlx.gguf_export.blocks import count_zeros
from aird_mlx.gguf_export.choice import TypeChoice
from aird_mlx.gguf_export.encoding import VALUES_AT_A_TIME, Tally, encode_tensor
from aird_mlx.gguf_export.llama_quantizer import check_quantizer, quantize_file
from aird_mlx.gguf_export.notes import notes_on_plan, notes_on_writing
from aird_mlx.gguf_export.outtypes import AUTO, Kind, OutType, find_outtype
from aird_mlx.gguf_export.stored import StoredTensor, read_stored_tensors
from aird_mlx.gguf_export.stream import hash_file, whole_file, write_outline, write_tensors

EXTRA_PREFIX = "aird."
SEAL_KEY = "aird.hash.root"  # of a file whose manifest has been written


@dataclass(frozen=True)
class TensorFigures:
    """One tensor of a file to be: ``shape`` is ``[out, in]`` or ``[out]``, ``type`` GGML's name in lower case."""

    name: str
    shape: tuple[int, ...]
    type: str
    size_bytes: int


@dataclass(frozen=True)
class ExportPlan:
    """What an export would write: the type of most weights, every tensor, and what has to be said about it."""

    outtype: str
    tensors: tuple[TensorFigures, ...]
    notes: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """Of all tensors together, without padding and metadata."""
        return sum(tensor.size_bytes for tensor in self.tensors)


@dataclass(frozen=True)
class GgufFile:
    """A written file.

    Attributes:
        path: where it is.
        outtype: the type of most of its weights, never ``auto``.
        tensors: how many it holds.
        parameters: how many weights they hold together.
        size_bytes: of the file.
        sha256: of the whole file, hexadecimal.
        sparsity: share of exact zeros among the weights of the blocks' linears, counted in what was written.
        sparsity_before: the same in what the folder holds.
        dequantized: the folder held MLX-quantized weights, which were dequantized on the way and
            not taken over exactly.
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
    sparsity_before: float = 0.0
    dequantized: bool = False
    pre_tokenizer: str | None = None
    notes: tuple[str, ...] = ()


def export_gguf(
    folder: Path,
    outfile: Path,
    outtype: str,
    *,
    embedding_type: str | None = None,
    output_type: str | None = None,
    name: str | None = None,
    extra_metadata: Mapping[str, str | int | float | bool] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> GgufFile:
    """Write a model folder as one GGUF file that llama.cpp runs.

    Args:
        folder: an MLX or Hugging Face model: ``config.json``, ``*.safetensors``, tokenizer files.
        outfile: must not exist, unless it carries the same ``extra_metadata``: an interrupted run's own file, which
            is replaced. Written as ``<outfile>.partial`` first.
        outtype: of `outtypes.OUTTYPES`, or ``auto``: what the folder holds, MLX-quantized weights in the block that
            takes their codes and scales. Norms and biases are always f32.
        embedding_type, output_type: of these two matrices; None: as the others.
        name: for ``general.name``; the folder's name by default.
        extra_metadata: further keys, each starting with ``aird.``.
        progress: called with (tensors written, tensors in all) after each tensor.

    Raises:
        ModelError: the folder cannot be read, or its parts contradict each other.
        ExportError: ``outfile`` exists, the model has no equal in llama.cpp, a weight does not fit the type, or the
            file cannot be written. Nothing is left behind.
        DependencyError: the tokenizer needs sentencepiece, or the type llama.cpp's quantizer, and it is not installed.
    """
    if os.path.lexists(outfile) and not _carries(outfile, extra_metadata or {}):
        raise ExportError(
            f"gguf: {outfile} exists already; a new file is needed. Choose another outfile, or remove it."
        )
    prepared = _prepare(folder, outtype, embedding_type, output_type)
    plan, tally = prepared.plan, Tally()
    writer = _describe(prepared, name or folder.resolve().name, extra_metadata or {})
    factors = [] if prepared.factors is None else [[prepared.factors]]
    needed = prepared.size_bytes

    def write(path: Path) -> str:
        tensors_of_file = (encode_tensor(planned, prepared.stored, tally) for planned in plan)

        def report(done: int) -> None:
            if progress is not None and done > len(factors):
                progress(done - len(factors), len(plan))

        return write_tensors(writer, path, itertools.chain(factors, tensors_of_file), report)

    if prepared.wanted.native:
        with whole_file(outfile, needed) as partial:
            sha256 = write(partial)
    else:
        with whole_file(outfile, 2 * needed) as partial:  # an upper bound of both
            exact = outfile.with_name(outfile.name + ".exact.partial")
            try:
                write(exact)
                quantize_file(
                    exact, partial, prepared.wanted, embedding_type=embedding_type, output_type=output_type
                )  # fmt: skip
            finally:
                exact.unlink(missing_ok=True)
        sha256 = hash_file(outfile)
        tally.zeros = _count_zeros(outfile)
    return GgufFile(
        path=outfile,
        outtype=prepared.wanted.name,
        tensors=len(plan) + len(factors),
        parameters=sum(tensor.parameters for tensor in plan),
        size_bytes=outfile.stat().st_size,
        sha256=sha256,
        sparsity=tally.sparsity,
        sparsity_before=tally.sparsity_before,
        dequantized=any(tensor.quantization is not None and not tensor.is_exact for tensor in plan),
        pre_tokenizer=prepared.vocabulary.pre,
        notes=(*prepared.notes, *notes_on_writing(tally, prepared.wanted)),
    )


def plan_export(
    folder: Path, outtype: str, *, embedding_type: str | None = None, output_type: str | None = None
) -> ExportPlan:
    """Say what `export_gguf` would write, tensor by tensor; of the weights at most a sample is read.

    Raises:
        ModelError, ExportError, DependencyError: as `export_gguf` would, but for what only the weights show.
    """
    prepared = _prepare(folder, outtype, embedding_type, output_type)
    kinds = {planned.name: planned.type for planned in prepared.plan}
    if not prepared.wanted.native:
        with tempfile.TemporaryDirectory() as temporary:
            outline = Path(temporary) / "outline.gguf"
            write_outline(_describe(prepared, "outline", {}), outline, prepared.size_bytes)
            kinds |= quantize_file(
                outline, outline.with_name("none.gguf"), prepared.wanted,
                embedding_type=embedding_type, output_type=output_type, dry_run=True,
            )  # fmt: skip
    tensors_of_file = tuple(
        TensorFigures(one.name, one.shape, kinds[one.name].name.lower(), one.bytes_as(kinds[one.name]))
        for one in prepared.plan
    )
    if prepared.factors is not None:
        own = TensorFigures("rope_freqs.weight", prepared.factors.shape, "f32", prepared.factors.nbytes)
        tensors_of_file = (own, *tensors_of_file)
    return ExportPlan(prepared.wanted.name, tensors_of_file, prepared.notes)


def check_exportable(folder: Path, outtype: str) -> tuple[str, ...]:
    """Find out before a long run whether `export_gguf` could write this model; of the weights at most a sample is read.

    Returns:
        In sentences, where llama.cpp will differ from MLX.

    Raises:
        ModelError, ExportError, DependencyError: as `export_gguf` would, but for what only the weights show.
    """
    return _prepare(folder, outtype).notes


def resolve_outtype(folder: Path, outtype: str) -> str:
    """The type that ``auto`` means for this folder; any other name stays itself.

    Raises:
        ModelError, ExportError, DependencyError: as `check_exportable`.
    """
    return _prepare(folder, outtype).wanted.name


@dataclass(frozen=True)
class _Prepared:
    """Everything about a file but its weights."""

    folder: Path
    hyperparameters: metadata.Hyperparameters
    stored: dict[str, StoredTensor]
    plan: list[tensors.PlannedTensor]
    vocabulary: tokenizer.Vocabulary
    wanted: OutType
    factors: np.ndarray | None
    notes: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """Of the tensors, padding included."""
        own = 0 if self.factors is None else self.factors.nbytes
        sizes = [own, *(planned.size_bytes for planned in self.plan)]
        return sum(gguf.GGUFWriter.ggml_pad(size, gguf.GGUF_DEFAULT_ALIGNMENT) for size in sizes)


def _prepare(
    folder: Path, outtype: str, embedding_type: str | None = None, output_type: str | None = None
) -> _Prepared:
    if not folder.is_dir():
        raise ModelError(f"model: {folder} is not a folder; a local model folder is needed. Check the path.")
    config = metadata.read_json(folder / "config.json")
    if not config:
        raise ModelError(f"model: {folder} has no config.json; a model folder is needed. Check the path.")
    hyperparameters = metadata.read_hyperparameters(config)
    stored = read_stored_tensors(folder)
    quantization = config.get("quantization") or config.get("quantization_config")
    choice = TypeChoice(outtype, stored, embedding_type, output_type)
    plan = tensors.plan_tensors(stored, hyperparameters, choice.choose, quantization)
    wanted = find_outtype(tensors.common_type(plan) if outtype == AUTO else outtype)
    if not wanted.native:
        check_quantizer(wanted)
    vocabulary = tokenizer.read_vocabulary(folder, plan[0].shape[0])
    notes = [*metadata.find_limits(config, hyperparameters), *vocabulary.notes, *notes_on_plan(plan, choice, wanted)]
    if not vocabulary.chat_templates.get("default"):
        notes.append("the folder has no chat template, so neither has the file: chat programs will guess one")
    factors = metadata.rope_frequency_factors(hyperparameters)
    return _Prepared(folder, hyperparameters, stored, plan, vocabulary, wanted, factors, tuple(notes))


def _describe(prepared: _Prepared, name: str, extra: Mapping[str, str | int | float | bool]) -> gguf.GGUFWriter:
    """A writer with every key and tensor header."""
    plan, factors = prepared.plan, prepared.factors
    writer = gguf.GGUFWriter(None, prepared.hyperparameters.architecture)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_size_label(gguf.size_label(sum(tensor.parameters for tensor in plan), 0, 0, 0))
    licence = metadata.read_licence(prepared.folder)
    if licence is not None:
        writer.add_license(licence)
    writer.add_file_type(int(prepared.wanted.file_type))
    writer.add_quantization_version(metadata.QUANTIZATION_VERSION)
    metadata.add_hyperparameters(writer, prepared.hyperparameters, plan[0].shape[0])
    tokenizer.add_vocabulary(writer, prepared.vocabulary)
    add_extra_metadata(writer, extra)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes, Kind.F32)
    for planned in plan:
        writer.add_tensor_info(
            planned.name, planned.shape, np.dtype(np.float32), planned.size_bytes, raw_dtype=planned.type
        )
    return writer


def _count_zeros(file: Path) -> int:
    """Exact zeros among the weights of the blocks' linears, as a runtime decodes them."""
    zeros = 0
    for tensor in gguf.GGUFReader(file).tensors:
        if tensors.is_block_linear(tensor.name, tuple(tensor.shape)):
            data = tensor.data.reshape(len(tensor.data), -1)
            step = max(1, VALUES_AT_A_TIME // int(tensor.shape[0]))
            for start in range(0, len(data), step):
                zeros += count_zeros(data[start : start + step].view(np.uint8), tensor.tensor_type)
    return zeros


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
