"""The importance matrix: how strongly a model uses each input of each matrix, which K- and I-quants round by.

Measured on MLX over the calibration tokens, or read from a user's file; kept in the format of llama.cpp's
``llama-imatrix``: per matrix the sum of the squares of its inputs, and over how many tokens. Knows no prompts.
Source: ``tools/imatrix/imatrix.cpp``, ``common/imatrix-loader.cpp`` and ``tools/quantize/quantize.cpp`` of llama.cpp.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import gguf
import mlx.core as mx
import numpy as np

from aird_mlx.activations import TokenBatch, Walk
from aird_mlx.errors import ExportError
from aird_mlx.gguf_export.stream import whole_gguf
from aird_mlx.gguf_export.tensors import PlannedTensor
from aird_mlx.model import ChatModel
from aird_mlx.pruning.moments import input_squares

SUMS, COUNTS = ".in_sum2", ".counts"
CHUNK = 512  # tokens: what llama-imatrix reads at a time by default
MOST_ENTRIES, LONGEST_NAME, MOST_VALUES = 1 << 16, 1 << 10, 1 << 28  # beyond, a .dat file is none


@dataclass(frozen=True)
class Importance:
    """Of one matrix, or of one stack of experts.

    Attributes:
        sums: ``[expert, in]`` float32, sums of the squares of the inputs; one expert where the matrix is no stack.
        counts: ``[expert]`` float32, tokens these are sums over.
    """

    sums: np.ndarray
    counts: np.ndarray

    def means(self) -> np.ndarray:
        """``[expert * in]`` float32: mean squares, and 1 for an expert that saw no token, as llama-quantize has it."""
        counts = self.counts[:, None]
        return np.where(counts > 0, self.sums / np.maximum(counts, 1), np.float32(1)).astype(np.float32).ravel()


@dataclass(frozen=True)
class Imatrix:
    """By GGUF tensor name, with what was read.

    Attributes:
        entries: of the matrices that were used.
        datasets: names of the texts.
        chunk_count, chunk_size: how many tokens that was: chunks of so many.
        name: of its file; files quantized by it say so.
    """

    entries: Mapping[str, Importance]
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int
    name: str = "imatrix.gguf"


def measure_imatrix(
    model: ChatModel,
    batches: Sequence[TokenBatch],
    plan: Sequence[PlannedTensor],
    datasets: Sequence[str],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Imatrix:
    """Run calibration tokens through the model, block by block, and sum the squares of what its linears read.

    Args:
        model: read only.
        batches: the tokens; those with ``counted`` 0 are run and not summed.
        plan: the tensors of the file to be; gives the linears their GGUF names.
        datasets: what the tokens are called in the file.
        progress: called with (blocks done, blocks).

    Raises:
        ModelError: activations are not finite.
    """
    matrices = [planned for planned in plan if planned.is_block_linear]
    blocks = model.architecture.blocks.rsplit(".", 1)[-1]
    total = mx.array([sum(batch.counted.sum().item() for batch in batches)])
    entries: dict[str, Importance] = {}
    walk = Walk(model, batches)
    while not walk.is_done:
        inputs = input_squares(walk, walk.layout.linear_names)
        for name, squares in inputs.values.items():
            # Of one linear several tensors may be made, all with its inputs.
            ending = f".{blocks}.{walk.layer}.{name}.weight"  # folders differ in what comes before
            made = [one for one in matrices if any(piece.source.endswith(ending) for piece in one.pieces)]
            counts = np.array(inputs.tokens.get(name, total), dtype=np.float32)
            for planned in made:
                entries[planned.name] = Importance(np.array(squares).reshape(len(counts), -1), counts)
        walk.advance()
        progress(walk.layer, len(model.blocks))
    return Imatrix(entries, tuple(datasets), max(1, int(total.item()) // CHUNK), CHUNK)


def check_imatrix(imatrix: Imatrix, plan: Sequence[PlannedTensor]) -> list[str]:
    """Find out whether an importance matrix is one of this model.

    Returns:
        In a sentence, which matrices it does not know.

    Raises:
        ExportError: an entry has another size than its matrix, or none is of this model.
    """
    matrices = [planned for planned in plan if planned.is_block_linear]
    for planned in matrices:
        entry = imatrix.entries.get(planned.name)
        experts = planned.shape[0] if len(planned.shape) > 2 else 1
        if entry is not None and entry.sums.size != experts * planned.shape[-1]:
            raise ExportError(
                f"imatrix: {planned.name} has {entry.sums.size} values; {experts * planned.shape[-1]} are needed, one "
                "for each input. Use the imatrix of this very model."
            )
    unknown = [planned.name for planned in matrices if planned.name not in imatrix.entries]
    if len(unknown) == len(matrices):
        raise ExportError(
            f"imatrix: none of its {len(imatrix.entries)} entries is a matrix of this model, {unknown[0]} for example; "
            "the same names are needed. Use the imatrix of this very model."
        )
    if unknown:
        return [f"the imatrix says nothing of {len(unknown)} of {len(matrices)} matrices, first {unknown[0]}"]
    return []


def check_new_imatrix(path: Path) -> None:
    """Find out whether an importance matrix can be written there.

    Raises:
        ExportError: the file exists.
    """
    if path.exists():
        raise ExportError(
            f"imatrix: {path} exists already; a new file is needed. Give it with --imatrix to use it, or remove it."
        )


def write_imatrix(imatrix: Imatrix, path: Path) -> None:
    """Write it as ``llama-imatrix --output-format gguf`` does, to the byte.

    Raises:
        ExportError: the file exists, or cannot be written.
    """
    check_new_imatrix(path)
    writer = gguf.GGUFWriter(None, "")
    writer.kv_data[0].clear()  # such a file names no architecture
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", list(imatrix.datasets))
    writer.add_uint32("imatrix.chunk_count", imatrix.chunk_count)
    writer.add_uint32("imatrix.chunk_size", imatrix.chunk_size)
    for name in sorted(imatrix.entries, key=str.encode):
        entry = imatrix.entries[name]
        stack = len(entry.counts) > 1
        writer.add_tensor(name + SUMS, entry.sums if stack else entry.sums[0])
        writer.add_tensor(name + COUNTS, entry.counts[:, None] if stack else entry.counts)
    with whole_gguf(path, sum(entry.sums.nbytes + 1024 for entry in imatrix.entries.values())) as partial:
        try:
            writer.write_header_to_file(partial)
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


def read_imatrix(path: Path) -> Imatrix:
    """Read what ``llama-imatrix`` wrote, in its GGUF format or the older one (``.dat``).

    Raises:
        ExportError: the file cannot be read, or holds something else, or numbers that are no sums of squares.
    """
    try:
        with path.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
            file.seek(0)
            imatrix = _read_gguf(path) if is_gguf else _read_dat(file, path.stat().st_size)
    except (OSError, ValueError, IndexError, KeyError, OverflowError, struct.error) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
        raise ExportError(
            f"imatrix: {path} cannot be read ({reason[:200]}); a file of llama-imatrix, GGUF or .dat, is needed. "
            "Check the path."
        ) from error
    for name, entry in imatrix.entries.items():
        if not (np.isfinite(entry.sums).all() and (entry.sums >= 0).all() and np.isfinite(entry.counts).all()):
            raise ExportError(
                f"imatrix: {path} has values of {name} that are no sums of squares; finite numbers from 0 on are "
                "needed. Compute it again."
            )
    return replace(imatrix, name=path.name)


def _read_gguf(path: Path) -> Imatrix:
    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    if keys.get("general.type") != "imatrix":
        raise ValueError(f"general.type is {keys.get('general.type')!r}")
    tensors = {tensor.name: np.array(tensor.data, dtype=np.float32) for tensor in reader.tensors}
    entries = {}
    for name in (one.removesuffix(SUMS) for one in tensors if one.endswith(SUMS)):
        counts = tensors[name + COUNTS].ravel()
        entries[name] = Importance(tensors[name + SUMS].reshape(len(counts), -1), counts)
    if not entries:
        raise ValueError("no tensor of sums")
    datasets = tuple(str(one) for one in keys.get("imatrix.datasets", []))
    return Imatrix(entries, datasets, int(keys["imatrix.chunk_count"]), int(keys["imatrix.chunk_size"]))


def _read_dat(file: BinaryIO, size: int) -> Imatrix:
    """entries i32 | per entry: length i32, name, calls i32, values i32, f32... | chunks i32, length i32, data set."""

    def number(most: int) -> int:
        (value,) = struct.unpack("<i", file.read(4))
        if not 0 <= value <= most:
            raise ValueError(f"{value} at byte {file.tell() - 4} of {size}")
        return int(value)

    entries = {}
    count = number(MOST_ENTRIES)
    for _ in range(count):
        name = file.read(number(LONGEST_NAME)).decode("utf-8")
        calls = number(2**31 - 1)
        values = np.frombuffer(file.read(4 * number(min(MOST_VALUES, size // 4))), dtype="<f4")
        # The sums are means times calls; where no calls are counted, they are the means themselves.
        entries[name] = Importance(values[None].astype(np.float32), np.array([max(calls, 1)], dtype=np.float32))
    if not entries or any(not entry.sums.size for entry in entries.values()):
        raise ValueError("no data")
    if not file.read(1):  # the rest is optional
        return Imatrix(entries, (), 0, 0)
    file.seek(-1, 1)
    chunks = number(2**31 - 1)
    dataset = file.read(number(size)).decode("utf-8", errors="replace")
    return Imatrix(entries, (dataset,) if dataset else (), chunks, 0)
