"""The export: one model folder in, one GGUF file out, tensor by tensor.

Prepares first (`preparation`), so that whatever must be refused is refused before a file exists; then streams one
tensor at a time into a file that gets its name when it is whole. Knows nothing about running it: that is `runtime`
and `parity`. Source: GGUF v3 as PyPI's ``gguf`` writes it.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from aird_mlx.errors import ExportError
from aird_mlx.gguf_export.blocks import dequantize
from aird_mlx.gguf_export.chat_facts import ChatFacts, gather_chat_facts
from aird_mlx.gguf_export.encoding import BYTES_AT_A_TIME, encode_job, jobs_of
from aird_mlx.gguf_export.export_plan import quantized_bytes
from aird_mlx.gguf_export.header import EXTRA_PREFIX, Value, describe
from aird_mlx.gguf_export.imatrix import Imatrix, check_imatrix
from aird_mlx.gguf_export.keys import encode_keys
from aird_mlx.gguf_export.llama_quantizer import Order, quantize_file
from aird_mlx.gguf_export.notes import notes_on_writing
from aird_mlx.gguf_export.outtypes import check_zero_exact
from aird_mlx.gguf_export.packing import parts_of
from aird_mlx.gguf_export.preparation import Prepared, prepare
from aird_mlx.gguf_export.stream import whole_gguf, write_tensors
from aird_mlx.gguf_export.tally import Tally
from aird_mlx.gguf_export.tensors import PlannedTensor, is_block_linear
from aird_mlx.workspace import unfinished_of

MOST_WORKERS = 4  # that encode; writing waits for them more than for the disk
WAITING = 3  # jobs more than workers, so that none of these waits while the file is written
BYTES_KEPT = 1 << 24
SEAL_KEY = "aird.hash.root"  # of a file whose manifest has been written


@dataclass(frozen=True)
class GgufFile:
    """A written file.

    Attributes:
        path: where it is.
        outtype: the type of most of its weights, never ``auto``.
        tensors: how many it holds.
        parameters: how many weights they hold together.
        size_bytes: of the file.
        chat: what chat programs need to know of it.
        sparsity: share of exact zeros among the weights of the blocks' linears, counted in what was written.
        sparsity_before: the same in what the folder holds.
        retention: share of the folder's zeros that are zero in what was written.
        dequantized: the folder held MLX-quantized weights, which were dequantized on the way and
            not taken over exactly.
        pre_tokenizer: llama.cpp's name for it, None for sentencepiece.
        notes: where llama.cpp will differ from MLX, one sentence each; empty when nothing is known.
        parts: the paths, where it was split; ``path`` is then the first.
    """

    path: Path
    outtype: str
    tensors: int
    parameters: int
    size_bytes: int
    chat: ChatFacts
    sparsity: float
    sparsity_before: float = 0.0
    retention: float = 1.0
    dequantized: bool = False
    pre_tokenizer: str | None = None
    notes: tuple[str, ...] = ()
    parts: tuple[Path, ...] = ()


def export_gguf(
    folder: Path,
    outfile: Path,
    outtype: str,
    *,
    embedding_type: str | None = None,
    output_type: str | None = None,
    imatrix: Imatrix | None = None,
    zero_exact: bool = False,
    name: str | None = None,
    extra_metadata: Mapping[str, Value] | None = None,
    copied: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> GgufFile:
    """Write a model folder as one GGUF file that llama.cpp runs.

    Args:
        folder: an MLX or Hugging Face model: ``config.json``, ``*.safetensors``, tokenizer files.
        outfile: must not exist, unless it carries the same ``extra_metadata``: an interrupted run's own file, which
            is replaced.
        outtype: of `outtypes.OUTTYPES`, or ``auto``: what the folder holds, MLX-quantized weights in the block that
            takes their codes and scales. Norms and biases are always f32.
        embedding_type, output_type: of these two matrices; None: as the others.
        imatrix: what llama.cpp's quantizer weighs errors by; types that this project writes itself do not use it.
        zero_exact: write q4_1 and q5_1 so that pruned weights stay exactly zero.
        name: for ``general.name``; by default the card's, or made from the folder's or the hub's.
        extra_metadata: further keys, each starting with ``aird.``.
        copied: the file will be written once more beside itself (sealed, or split), and needs the room.
        progress: called with (tensors written, tensors in all) after each tensor.

    Raises:
        ModelError: the folder cannot be read, or its parts contradict each other.
        UsageError: ``zero_exact`` of a type that has no exact zero.
        ExportError: ``outfile`` exists, the model has no equal in llama.cpp, a weight does not fit the type, or the
            file cannot be written. Nothing is left behind.
        DependencyError: the tokenizer needs sentencepiece, or the type llama.cpp's quantizer, and it is not installed.
    """
    check_new_file(outfile, extra_metadata or {})
    prepared = prepare(folder, outtype, embedding_type, output_type)
    order, said = _order(prepared, imatrix)
    if zero_exact:
        check_zero_exact(prepared.wanted)
    header = describe(prepared, name, extra_metadata or {})
    tally = Tally()
    _write(prepared, header, outfile, _encode(prepared, tally, zero_exact, progress), order, tally, copied=copied)
    return GgufFile(
        path=outfile,
        outtype=prepared.wanted.name,
        tensors=len(prepared.plan) + len(prepared.extra),
        parameters=prepared.parameters,
        size_bytes=outfile.stat().st_size,
        sparsity=tally.sparsity,
        sparsity_before=tally.sparsity_before,
        retention=tally.retention,
        dequantized=any(tensor.quantization is not None and not tensor.is_exact for tensor in prepared.plan),
        pre_tokenizer=prepared.vocabulary.pre,
        notes=(*prepared.notes, *said, *notes_on_writing(tally, prepared.wanted)),
        chat=gather_chat_facts(folder, prepared.vocabulary, prepared.hyperparameters.context_length),
    )


def check_new_file(outfile: Path, metadata: Mapping[str, Value]) -> None:
    """Find out whether a file may be written there.

    Args:
        outfile: the file to be.
        metadata: keys that only a file of this very run carries; such a one may be replaced.

    Raises:
        ExportError: another exists.
    """
    if os.path.lexists(outfile) and not _carries(outfile, metadata):
        raise ExportError(
            f"gguf: {outfile} exists already; a new file is needed. Choose another outfile, or remove it."
        )


def _encode(
    prepared: Prepared, tally: Tally, zero_exact: bool, progress: Callable[[int, int], None] | None
) -> Iterator[Iterable[np.ndarray]]:
    """The bytes of every tensor of the header, in order; progress is told when the next is asked for.

    They are encoded ahead, in threads: numpy lets go of the interpreter.
    """
    for values in prepared.extra.values():
        yield [values]
    jobs = (job for planned in prepared.plan for job in jobs_of(planned))
    ahead: deque[Future[tuple[np.ndarray, Tally]]] = deque()
    workers = max(1, min(MOST_WORKERS, os.cpu_count() or 1))
    np.empty(BYTES_KEPT, dtype=np.uint8)  # glibc then keeps as much of what is freed, and need not ask for it again
    with ThreadPoolExecutor(workers) as pool:

        def take(planned: PlannedTensor) -> Iterator[np.ndarray]:
            for _ in jobs_of(planned):
                for job in itertools.islice(jobs, workers + WAITING - len(ahead)):
                    ahead.append(pool.submit(encode_job, job, prepared.stored, zero_exact))
                encoded, counted = ahead.popleft().result()
                tally.add(counted)
                yield encoded

        try:
            for done, planned in enumerate(prepared.plan, start=1):
                yield take(planned)
                if progress is not None:
                    progress(done, len(prepared.plan))
        finally:  # what is not begun need not be, when something failed
            pool.shutdown(cancel_futures=True)


def _write(
    prepared: Prepared,
    header: gguf.GGUFWriter,
    outfile: Path,
    tensors_of_file: Iterable[Iterable[np.ndarray]],
    order: Order,
    tally: Tally,
    *,
    copied: bool,
) -> None:
    """Write the file, if need be by way of one that llama.cpp's quantizer reads, and whose zeros are then counted."""
    keys = encode_keys(header.kv_data[0])
    if prepared.wanted.native:
        with whole_gguf(outfile, (1 + copied) * (len(keys) + prepared.size_bytes)) as partial:
            write_tensors(header, keys, partial, tensors_of_file)
        return
    size = len(keys) + quantized_bytes(prepared, order.imatrix)
    with whole_gguf(outfile, size + max(len(keys) + prepared.size_bytes, copied * size)) as partial:
        exact = unfinished_of(outfile.with_name(outfile.name + ".exact"))
        try:
            write_tensors(header, keys, exact, tensors_of_file)
            quantize_file(exact, partial, order)
            tally.zeros, tally.zeros_kept = _count_zeros(exact, partial)
        finally:
            exact.unlink(missing_ok=True)


def _order(prepared: Prepared, imatrix: Imatrix | None) -> tuple[Order, list[str]]:
    """What llama.cpp's quantizer gets besides the file, and what has to be said about that."""
    wanted, used = prepared.wanted, None if prepared.wanted.native else imatrix
    if wanted.needs_imatrix and imatrix is None:
        raise ExportError(
            f"gguf: outtype {wanted.name} without an imatrix; llama.cpp writes it only with one. Give one with "
            "--imatrix, or choose a larger type."
        )
    said = [] if used is None else check_imatrix(used, prepared.plan)
    if used is not imatrix:
        said.append(f"{wanted.name} is written without an imatrix; llama.cpp's own types use one")
    return Order(wanted, prepared.choice.embedding_type, prepared.choice.output_type, used), said


def _count_zeros(exact: Path, quantized: Path) -> tuple[int, int]:
    """Exact zeros among the weights of the blocks' linears as a runtime decodes them; how many of them were before."""
    zeros = kept = 0
    before = {tensor.name: tensor for tensor in gguf.GGUFReader(exact).tensors}
    for tensor in gguf.GGUFReader(quantized).tensors:
        if is_block_linear(tensor.name, tuple(tensor.shape)):
            for part in parts_of(_rows(before[tensor.name]), BYTES_AT_A_TIME):
                was, now = (_are_zero(one, part) for one in (before[tensor.name], tensor))
                zeros += int(np.count_nonzero(now))
                kept += int(np.count_nonzero(was & now))
    return zeros, kept


def _rows(tensor: gguf.ReaderTensor) -> np.ndarray:
    return tensor.data.reshape(-1, tensor.data.shape[-1])


def _are_zero(tensor: gguf.ReaderTensor, part: slice) -> np.ndarray:
    """Of some rows, ``[row, in]`` bool, which weights a runtime decodes to zero."""
    return dequantize(_rows(tensor)[part].view(np.uint8), tensor.tensor_type) == 0


def _carries(file: Path, extra: Mapping[str, Value]) -> bool:
    """Whether a GGUF file holds exactly these keys of the project's own, at least one, or a manifest with them."""
    try:
        fields = gguf.GGUFReader(file).fields if extra and file.is_file() else {}
        ours = {key: fields[key].contents() for key in fields if key.startswith(EXTRA_PREFIX)}
        sealed = SEAL_KEY in ours
        return bool(extra) and {key: value for key, value in ours.items() if key in extra or not sealed} == extra
    except (OSError, ValueError, IndexError, KeyError):
        return False
