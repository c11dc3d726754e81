"""A patch as a LoRA that llama.cpp adds to a model file it runs: ``--lora patch.gguf``, switched on and off at will.

The change of each linear is a product of two matrices: of few rows and columns where it has a low rank or is cut to
one, else of the whole change with a unit matrix, which is exact and large. Says which base file it is for, and whether
that holds what the patch was made for. Source: ``src/llama-adapter.cpp`` of llama.cpp.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np

from aird_mlx.architectures import blocks_path
from aird_mlx.errors import ExportError
from aird_mlx.gguf_export.encoding import read_values
from aird_mlx.gguf_export.general import read_licence
from aird_mlx.gguf_export.header import Value, add_extra_metadata
from aird_mlx.gguf_export.keys import encode_keys
from aird_mlx.gguf_export.outtypes import Kind
from aird_mlx.gguf_export.preparation import Prepared, prepare
from aird_mlx.gguf_export.stream import whole_gguf, write_tensors
from aird_mlx.gguf_export.tensors import PlannedTensor
from aird_mlx.model import read_config
from aird_mlx.patch import LinearPatch, Patch, factor_change
from aird_mlx.workspace import hash_file

# A base whose weights are further off than this (relative, of all that is patched) is another model.
FURTHEST_BASE = 0.6


@dataclass(frozen=True)
class LoraFile:
    """A written adapter.

    Attributes:
        path: where it is.
        rank: largest rank of its tensors.
        size_bytes: of the file.
        lost: of the change, what its rank leaves out: root of the sum of squares, relative; 0 where it is exact.
        base_sha256: of the file it is for, None where none was given.
        base_distance: how far that file's weights are from those the patch was made for, relative; 0 if they are these.
    """

    path: Path
    rank: int
    size_bytes: int
    lost: float
    base_sha256: str | None = None
    base_distance: float | None = None


def export_lora(
    folder: Path,
    patch: Patch,
    outfile: Path,
    *,
    rank: int | None = None,
    base: Path | None = None,
    name: str = "patch",
    extra_metadata: Mapping[str, Value] | None = None,
) -> LoraFile:
    """Write a patch as a LoRA for the model it repairs.

    Args:
        folder: the repaired model: what ``patch`` made of the compressed one.
        patch: what was changed.
        outfile: must not exist; written under a temporary name first.
        rank: at most, of every tensor; None: what each change needs.
        base: the GGUF file it is for; its hash is written into the adapter.
        name: for ``general.name``.
        extra_metadata: further keys, each starting with ``aird.``.

    Raises:
        ExportError: ``outfile`` exists or cannot be written; ``base`` is another model, or repaired already; a linear
            has no place in llama.cpp.
        ModelError: the folder cannot be read.
    """
    if os.path.lexists(outfile):
        raise ExportError(
            f"lora: {outfile} exists already; a new file is needed. Choose another outfile, or remove it."
        )
    prepared = prepare(folder, "f32")
    places = _find_places(prepared, patch)
    distance, digest = None, None
    if base is not None:
        distance = _check_base(base, prepared, places)
        digest = hash_file(base)
    ranks = [_rank(part, rank) for part, _, _ in places]
    alpha = max(ranks, default=1)
    header = _describe(prepared, places, ranks, alpha, name, {**(extra_metadata or {}), **_base_facts(base, digest)})
    lost = _Lost()
    size = sum(
        4 * own * sum(planned.shape[-2:]) * math.prod(planned.shape[:-2])
        for own, (_, planned, _) in zip(ranks, places, strict=True)
    )
    with whole_gguf(outfile, size + (1 << 16)) as partial:
        write_tensors(header, encode_keys(header.kv_data[0]), partial, _tensors(places, rank, alpha, lost))
    return LoraFile(outfile, alpha, outfile.stat().st_size, lost.share, digest, distance)


class _Lost:
    """What truncation left out, summed over tensors."""

    def __init__(self) -> None:
        self.left_out, self.whole = 0.0, 0.0

    @property
    def share(self) -> float:
        """Relative, as a root of sums of squares."""
        return math.sqrt(self.left_out / self.whole) if self.whole else 0.0


# A part of the patch, a tensor of the GGUF file that it changes, and which rows of the part that tensor has; of fused
# experts the rows of all, one expert after the other.
Place = tuple[LinearPatch, PlannedTensor, np.ndarray]


def _find_places(prepared: Prepared, patch: Patch) -> list[Place]:
    """Where each part goes: to one tensor, or cut along its rows to several."""
    blocks = blocks_path(read_config(prepared.folder))
    plain: dict[str, list[PlannedTensor]] = {}
    for planned in prepared.plan:
        if len(planned.pieces) == 1 and planned.change is None:
            plain.setdefault(planned.source, []).append(planned)
    places = []
    for part in patch.parts:
        source = f"{blocks}.{part.block}.{part.name}.weight"
        *experts, out, width = shape = part.change().shape
        count = math.prod(experts)
        found = [(planned, np.asarray(planned.pieces[0].rows)) for planned in plain.get(source, [])]
        covered = sorted(int(row) for _, rows in found for row in rows)
        if covered != list(range(count * out)) or not all(
            planned.shape == (*experts, len(rows) // count, width) and _is_by_expert(rows, count, out)
            for planned, rows in found
        ):
            raise ExportError(
                f"lora: the patch changes {source} {shape}, which the folder has not, or not as a plain matrix "
                f"in llama.cpp ({[planned.shape for planned, _ in found]}); the model that this patch repaired is "
                "needed. Use the patch with its own folder, or export the repaired model."
            )
        places += [(part, planned, rows) for planned, rows in found]
    return places


def _is_by_expert(rows: np.ndarray, count: int, out: int) -> bool:
    """Whether rows of ``count`` experts that have ``out`` each come expert by expert, as many of each."""
    return len(rows) % count == 0 and bool((rows.reshape(count, -1) // out == np.arange(count)[:, None]).all())


def _rank(part: LinearPatch, rank: int | None) -> int:
    own = min(part.change().shape[-2:]) if part.left is None else int(part.left.shape[-1])
    return own if rank is None else min(rank, own)


def _describe(
    prepared: Prepared,
    places: list[Place],
    ranks: list[int],
    alpha: int,
    name: str,
    extra: Mapping[str, Value],
) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(None, prepared.hyperparameters.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(alpha))
    writer.add_name(name)
    if licence := read_licence(prepared.folder):
        writer.add_license(licence)
    add_extra_metadata(writer, extra)
    for (_, planned, _), rank in zip(places, ranks, strict=True):
        *experts, out, width = planned.shape
        for letter, shape in (("a", (*experts, rank, width)), ("b", (*experts, out, rank))):
            writer.add_tensor_info(
                f"{planned.name}.lora_{letter}", shape, np.dtype(np.float32), 4 * math.prod(shape), raw_dtype=Kind.F32
            )
    return writer


def _tensors(places: list[Place], rank: int | None, alpha: int, lost: _Lost) -> Iterator[list[np.ndarray]]:
    """A and B of every part; llama.cpp multiplies with alpha / rank, which B therefore lacks."""
    for _, cut in itertools.groupby(places, key=lambda place: id(place[0])):  # one part may become several tensors
        own = list(cut)
        part = own[0][0]
        left, right = factor_change(part, rank)
        own_rank, width = right.shape[-2:]
        for _, _, rows in own:
            if rank is not None:
                change, order = part.change().astype(mx.float32), mx.array(rows)
                lost.left_out += mx.square((change - left @ right).reshape(-1, width)[order]).sum().item()
                lost.whole += mx.square(change.reshape(-1, width)[order]).sum().item()
            yield [np.array(right)]
            yield [np.array(left).reshape(-1, own_rank)[rows] * np.float32(own_rank / alpha)]


def _check_base(base: Path, prepared: Prepared, places: list[Place]) -> float:
    """How far the base's weights are from those the patch was made for.

    Raises:
        ExportError: it is no GGUF file, another model, or holds the repaired weights.
    """
    try:
        reader = gguf.GGUFReader(base)
        found = {tensor.name: tensor for tensor in reader.tensors}
        field = reader.fields.get(gguf.Keys.General.ARCHITECTURE)
        architecture = None if field is None else field.contents()
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise ExportError(
            f"lora: {base} cannot be read ({' '.join(str(error).split())}); the GGUF file that the patch is for is "
            "needed. Check --base."
        ) from error
    if architecture != prepared.hyperparameters.architecture:
        raise ExportError(
            f"lora: {base} is of architecture {architecture}; {prepared.hyperparameters.architecture} is needed. Give "
            "the compressed model's file with --base."
        )
    from_compressed = from_repaired = norm = 0.0
    for part, planned, rows in places:
        tensor = found.get(planned.name)
        if tensor is None or tuple(reversed(tensor.shape.tolist())) != planned.shape:
            raise ExportError(
                f"lora: {base} has no tensor {planned.name} of shape {planned.shape}; the patch changes it. Give the "
                "compressed model's file with --base."
            )
        repaired = read_values(planned.source, prepared.stored, planned.quantization, rows)
        compressed = repaired - np.array(part.change().astype(mx.float32)).reshape(-1, repaired.shape[-1])[rows]
        held = _decode(base, tensor).reshape(repaired.shape)
        from_repaired += float(np.square(held - repaired).sum())
        from_compressed += float(np.square(held - compressed).sum())
        norm += float(np.square(compressed).sum())
    to_compressed, to_repaired = (math.sqrt(sum_ / max(norm, 1e-30)) for sum_ in (from_compressed, from_repaired))
    if to_repaired < min(to_compressed, FURTHEST_BASE):
        raise ExportError(
            f"lora: {base} holds the repaired weights already; the compressed model's file is needed. Check --base."
        )
    if to_compressed > FURTHEST_BASE:
        raise ExportError(
            f"lora: the weights of {base} are {to_compressed:.2g} times the length of those that were repaired away "
            "from them; the compressed model's file is needed. Check --base."
        )
    return to_compressed


def _decode(base: Path, tensor: gguf.ReaderTensor) -> np.ndarray:
    try:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise ExportError(
            f"lora: {tensor.name} of {base} is {tensor.tensor_type.name}, which cannot be compared with the repaired "
            "weights; a type that gguf reads is needed. Leave --base out."
        ) from error
    return values.reshape(tuple(reversed(tensor.shape.tolist()))).astype(np.float32)


def _base_facts(base: Path | None, digest: str | None) -> dict[str, Value]:
    return {} if base is None or digest is None else {"aird.base.name": base.name, "aird.base.sha256": digest}
