"""From the stored rows of a weight to the bytes of its GGUF tensor, a few million values at a time.

Where the target block holds what MLX stored (`PlannedTensor.is_exact`), codes and scales are moved; otherwise the
values are computed in float32 and quantized. Counts on the way what a report must say: zeros, scales that float16
cannot hold. Knows nothing about files to be written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from aird_mlx.errors import ExportError, ModelError
from aird_mlx.gguf_export import blocks, repack
from aird_mlx.gguf_export.microscaling import LARGEST_NVFP4
from aird_mlx.gguf_export.outtypes import NATIVE_KINDS, OUTTYPES, Kind
from aird_mlx.gguf_export.pieces import Rows
from aird_mlx.gguf_export.stored import StoredTensor
from aird_mlx.gguf_export.tally import Tally, ordinary_zeros
from aird_mlx.gguf_export.tensors import PlannedTensor
from aird_mlx.gguf_export.zero_exact import BITS as ZERO_EXACT
from aird_mlx.gguf_export.zero_exact import quantize_zero_exact

# Types whose decoded zero is what was zero, whatever the scale.
KEEPING = {one.kind for one in OUTTYPES.values() if one.native and one.keeps_zeros}
INFINITE_BITS = {Kind.F16: 0x7C00, Kind.BF16: 0x7F80}
BYTES_AT_A_TIME = 1 << 22  # smaller ones cost more calls, larger ones memory
LARGEST_F16 = 65504.0
# Largest absolute value: what the f16 scale of a block, times its largest code, can reach.
LARGEST = {
    Kind.F16: LARGEST_F16,
    Kind.Q8_0: LARGEST_F16 * 127,
    Kind.Q5_0: LARGEST_F16 * 16,
    Kind.Q4_0: LARGEST_F16 * 8,
    Kind.Q5_1: LARGEST_F16,
    Kind.Q4_1: LARGEST_F16,
    Kind.TQ1_0: LARGEST_F16,
    Kind.TQ2_0: LARGEST_F16,
    Kind.NVFP4: LARGEST_NVFP4,
}


@dataclass(frozen=True)
class Job:
    """Some rows of a tensor's piece, encoded by themselves."""

    planned: PlannedTensor
    source: str
    rows: Rows


@dataclass(frozen=True)
class Encoded:
    """The bytes of some rows, uint8, and of a block's linear how many of its weights are exactly zero.

    Attributes:
        zeros: as a runtime decodes them.
        before: as they are stored.
        kept: both.
    """

    data: np.ndarray
    zeros: int = 0
    before: int = 0
    kept: int = 0


def jobs_of(planned: PlannedTensor) -> Iterator[Job]:
    """A tensor in order, about `BYTES_AT_A_TIME` each; where values are changed, whole pieces."""
    count = planned.parameters // planned.shape[-1] if len(planned.shape) > 1 else planned.parameters
    step = max(1, BYTES_AT_A_TIME * count // max(planned.size_bytes, 1))
    for piece in planned.pieces:
        length = step if planned.change is None else max(len(piece.rows), 1)
        for start in range(0, len(piece.rows), length):
            yield Job(planned, piece.source, piece.rows[start : start + length])


def encode_job(job: Job, stored: Mapping[str, StoredTensor], zero_exact: bool = False) -> tuple[np.ndarray, Tally]:
    """The bytes of some rows, uint8, and what was counted in them; needs nothing of others.

    Args:
        job: what to write.
        stored: headers of the folder.
        zero_exact: types that can are written with an exact zero; codes of MLX's too are chosen anew where float16
            does not hold the scales that make them zero.

    Raises:
        ModelError: the file cannot be read.
        ExportError: a value is not finite, or too large for the type it is to be written in.
    """
    planned, tally = job.planned, Tally()
    if planned.change is None and planned.is_exact:
        encoded = _repack(job, stored, zero_exact, tally)
    else:
        encode = _encode_changed if planned.change else _requantize if planned.quantization else _encode_plain
        encoded = encode(job, stored, zero_exact)
    if planned.is_block_linear:
        tally.weights = len(job.rows) * planned.shape[-1]
        tally.zeros, tally.zeros_before, tally.zeros_kept = encoded.zeros, encoded.before, encoded.kept
        tally.ordinary_zeros = ordinary_zeros(planned.quantization) * tally.weights
    return encoded.data, tally


def read_values(
    source: str, stored: Mapping[str, StoredTensor], quantization: Mapping[str, Any] | None, rows: Rows
) -> np.ndarray:
    """Rows of a weight as float32: its values, or what MLX decodes.

    Args:
        source: name of the weight in the folder.
        stored: headers of the folder.
        quantization: keyword arguments of ``mx.dequantize``, None for plain weights.
        rows: of the matrix that its leading axes make.

    Raises:
        ModelError: the rows cannot be read, or are no weights that MLX quantized.
    """
    if quantization is None:
        return _as_float(stored[source].read(rows), stored[source].dtype)
    codes, scales, biases = _read_parts(source, stored, rows)
    try:
        if biases is None:
            decoded = mx.dequantize(mx.array(codes), mx.array(scales), **quantization)
        else:  # float32 keeps code * scale + bias exact
            decoded = mx.dequantize(mx.array(codes), mx.array(scales), mx.array(biases), **quantization)
        return np.array(decoded.astype(mx.float32))
    except (ValueError, RuntimeError) as error:
        raise ModelError(
            f"model: {source} is not quantized as config.json says ({' '.join(str(error).split())}); codes and scales "
            f"of {dict(quantization)} are needed. Use the config of these weights."
        ) from error


def relative_error(values: np.ndarray, encoded: np.ndarray, kind: Kind) -> float:
    """``|decoded - values| / |values|`` (Frobenius norms); 0 for zeros."""
    norm = float(np.linalg.norm(values))
    return float(np.linalg.norm(blocks.dequantize(encoded, kind) - values)) / norm if norm else 0.0


def _encode_plain(job: Job, stored: Mapping[str, StoredTensor], zero_exact: bool) -> Encoded:
    tensor, kind = stored[job.source], job.planned.type
    rows = tensor.read(job.rows)
    same = tensor.dtype == kind.name
    if kind in INFINITE_BITS and (same or (tensor.dtype, kind) == ("BF16", Kind.F16)):
        # What bfloat16 has below float16's range becomes zero.
        bits, _inexact, vanished = (rows.view(np.uint16), 0, 0) if same else blocks.bfloat16_to_half(rows)
        magnitude = bits << 1  # without the sign
        if not bits.size or magnitude.max() < INFINITE_BITS[kind] << 1:
            zeros = bits.size - int(np.count_nonzero(magnitude))
            return Encoded(bits.view(np.uint8), zeros, before=zeros - vanished, kept=zeros - vanished)
    return _encode_values(job, _as_float(rows, tensor.dtype), zero_exact)


def _requantize(job: Job, stored: Mapping[str, StoredTensor], zero_exact: bool) -> Encoded:
    return _encode_values(job, read_values(job.source, stored, job.planned.quantization, job.rows), zero_exact)


def _encode_changed(job: Job, stored: Mapping[str, StoredTensor], zero_exact: bool) -> Encoded:
    assert job.planned.change is not None
    values = job.planned.change(read_values(job.source, stored, job.planned.quantization, job.rows))
    return _encode_values(job, values.reshape(-1, job.planned.shape[-1]), zero_exact)


def _encode_values(job: Job, values: np.ndarray, zero_exact: bool) -> Encoded:
    planned = job.planned
    _check_range(planned, job.source, values, job.rows)
    if zero_exact and planned.type in ZERO_EXACT:
        encoded, zeros = quantize_zero_exact(values, planned.type)
        before = blocks.count_zeros(values, Kind.F32) if planned.is_block_linear else 0
        return Encoded(encoded, zeros, before, kept=before)
    return _compared(planned, values, blocks.quantize(values, planned.type))


def _compared(planned: PlannedTensor, values: np.ndarray, encoded: np.ndarray) -> Encoded:
    """Rows and what became of them, their zeros counted where that says something."""
    if not planned.is_block_linear:
        return Encoded(encoded)
    is_zero = values == 0
    before = int(np.count_nonzero(is_zero))
    if before and planned.type not in KEEPING:
        decoded = blocks.dequantize(encoded, planned.type).reshape(values.shape) == 0
        return Encoded(encoded, int(np.count_nonzero(decoded)), before, int(np.count_nonzero(decoded & is_zero)))
    return Encoded(encoded, blocks.count_zeros(encoded, planned.type), before, kept=before)


def _repack(job: Job, stored: Mapping[str, StoredTensor], zero_exact: bool, tally: Tally) -> Encoded:
    planned, settings = job.planned, job.planned.quantization
    assert settings is not None
    stem = job.source.removesuffix(".weight")
    codes = stored[job.source].read(job.rows)
    if f"{stem}.biases" not in stored:
        scales = stored[f"{stem}.scales"].read(job.rows)
        undefined = int((scales == 255).sum() if planned.type == Kind.MXFP4 else (scales >= 127).sum())
        if undefined:
            raise _not_finite(job.source, undefined, job.rows, "scales")
        repacked = repack.repack_mxfp4 if planned.type == Kind.MXFP4 else repack.repack_nvfp4
        encoded = repacked(codes, scales)
        zeros = blocks.count_zeros(encoded, planned.type) if planned.is_block_linear else 0
        return Encoded(encoded, zeros, before=zeros, kept=zeros)
    (scales, inexact_scales), (biases, inexact_biases) = (
        _read_halves(job, stored[f"{stem}.{part}"]) for part in ("scales", "biases")
    )
    tally.scales, tally.inexact_scales = scales.size + biases.size, inexact_scales + inexact_biases
    group_size = int(settings.get("group_size", 64))
    encoded, zeros = repack.repack_affine(codes, scales, biases, bits=int(settings["bits"]), group_size=group_size)
    if not tally.inexact_scales or not planned.is_block_linear:
        return Encoded(encoded, zeros, before=zeros, kept=zeros)
    # The zeros of the folder need not be those of the file.
    values = read_values(job.source, stored, settings, job.rows)
    found = _compared(planned, values, encoded)
    if zero_exact and found.kept < found.before:
        tally.anew = values.size
        return _encode_values(job, values, zero_exact)
    return found


def _read_halves(job: Job, tensor: StoredTensor) -> tuple[np.ndarray, int]:
    """Scales or biases of some rows as float16, and how many of them float16 does not hold."""
    rows = tensor.read(job.rows)
    if tensor.dtype == "BF16":
        bits, inexact, _ = blocks.bfloat16_to_half(rows)
        halves = bits.view(np.float16)
    else:
        with np.errstate(over="ignore"):  # refused below
            halves = rows.astype(np.float16)
        inexact = 0 if tensor.dtype == "F16" else int(np.count_nonzero(halves != rows))
    if halves.size and (halves.view(np.uint16) << 1).max() >= INFINITE_BITS[Kind.F16] << 1:  # without the signs
        _check_range(job.planned, job.source, _as_float(rows, tensor.dtype), job.rows)
    return halves, inexact


def _read_parts(
    source: str, stored: Mapping[str, StoredTensor], rows: Rows
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Codes, scales, and biases if it has any; those of an affine quantization as float32."""
    stem = source.removesuffix(".weight")
    codes = stored[source].read(rows)
    scales = stored[f"{stem}.scales"]
    if f"{stem}.biases" not in stored:
        return codes, scales.read(rows), None
    biases = stored[f"{stem}.biases"]
    return codes, _as_float(scales.read(rows), scales.dtype), _as_float(biases.read(rows), biases.dtype)


def _as_float(rows: np.ndarray, dtype: str) -> np.ndarray:
    return blocks.bfloat16_to_float(rows) if dtype == "BF16" else rows.astype(np.float32, copy=False)


def _check_range(planned: PlannedTensor, source: str, values: np.ndarray, rows: Rows) -> None:
    if not values.size:
        return
    largest = max(float(values.max()), -float(values.min()))  # NaN and inf come through
    if not np.isfinite(largest):
        raise _not_finite(source, int(values.size - np.isfinite(values).sum()), rows, "values")
    limit = LARGEST.get(planned.type)
    if limit is not None and largest > limit:
        raise ExportError(
            f"gguf: {source} reaches {largest:.6g}; {NATIVE_KINDS[planned.type]} holds at most {limit:g}. "
            "Use outtype f32 or bf16."
        )


def _not_finite(source: str, count: int, rows: Rows, what: str) -> ExportError:
    return ExportError(
        f"gguf: {source} holds {count} {what} that are not finite near row {rows[0]}; finite weights are "
        "needed. Repair or compress the model again."
    )
