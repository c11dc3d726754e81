"""From the stored rows of a weight to the bytes of its GGUF tensor, a few million values at a time.

Where the target block holds what MLX stored (`PlannedTensor.is_exact`), codes and scales are moved; otherwise the
values are computed in float32 and quantized. Counts on the way what a report must say: zeros, scales that float16
cannot hold. Knows nothing about files to be written.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from aird_mlx.errors import ExportError, ModelError
from aird_mlx.gguf_export import blocks, repack
from aird_mlx.gguf_export.microscaling import LARGEST_NVFP4
from aird_mlx.gguf_export.outtypes import NATIVE_KINDS, Kind
from aird_mlx.gguf_export.pieces import Rows
from aird_mlx.gguf_export.stored import StoredTensor
from aird_mlx.gguf_export.tensors import PlannedTensor

VALUES_AT_A_TIME = 1 << 19  # of float16: 1 MiB, which stays in the cache while it is hashed and written
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
Encode = Callable[..., tuple[np.ndarray, int | None]]
INFINITE_BITS = {Kind.F16: 0x7C00, Kind.BF16: 0x7F80}


@dataclass
class Tally:
    """What was counted while a file was encoded.

    Attributes:
        weights: of the blocks' linears.
        zeros_before: exact zeros among them, as stored.
        zeros: exact zeros among them, as a runtime decodes them.
        scales: scales and biases that went into float16.
        inexact_scales: of these, those that float16 does not hold.
    """

    weights: int = 0
    zeros_before: int = 0
    zeros: int = 0
    scales: int = 0
    inexact_scales: int = 0

    @property
    def sparsity(self) -> float:
        """Share of zeros in what was written."""
        return self.zeros / max(self.weights, 1)

    @property
    def sparsity_before(self) -> float:
        """Share of zeros in what was stored."""
        return self.zeros_before / max(self.weights, 1)


def encode_tensor(planned: PlannedTensor, stored: Mapping[str, StoredTensor], tally: Tally) -> Iterator[np.ndarray]:
    """The bytes of one tensor, in order; uint8 arrays of whole rows.

    Args:
        planned: what to write.
        stored: headers of the folder.
        tally: counts are added to it.

    Raises:
        ModelError: the file cannot be read.
        ExportError: a value is not finite, or too large for the type it is to be written in.
    """
    if planned.change is not None:
        encode: Encode = _encode_changed
    else:
        encode = _repack if planned.is_exact else _encode_plain if planned.quantization is None else _requantize
    width = planned.shape[-1] if len(planned.shape) > 1 else 1
    step = max(1, VALUES_AT_A_TIME // max(width, 1))
    for piece in planned.pieces:
        rows = len(piece.rows)
        for start in range(0, rows, step if planned.change is None else max(rows, 1)):
            chosen = piece.rows[start : start + step] if planned.change is None else piece.rows
            encoded, before = encode(planned, stored, piece.source, chosen, tally)
            if planned.is_block_linear:
                zeros = blocks.count_zeros(encoded, planned.type)
                tally.weights += len(chosen) * width
                tally.zeros += zeros
                tally.zeros_before += zeros if before is None else before
            yield encoded


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


def _encode_plain(
    planned: PlannedTensor, stored: Mapping[str, StoredTensor], source: str, chosen: Rows, _: Tally
) -> tuple[np.ndarray, int | None]:
    tensor, kind = stored[source], planned.type
    rows = tensor.read(chosen)
    same = tensor.dtype == kind.name
    if kind in INFINITE_BITS and (same or (tensor.dtype, kind) == ("BF16", Kind.F16)):
        bits = rows.view(np.uint16) if same else _half_of_bfloat16()[rows]
        limit = INFINITE_BITS[kind]
        if not bits.size or (bits.view(np.int16).max() < limit and bits.max() < 0x8000 + limit):
            # What bfloat16 has below float16's range becomes zero, so the zeros before are other zeros.
            before = None if same or not planned.is_block_linear else blocks.count_zeros(rows, Kind.BF16)
            return bits.view(np.uint8), before
    return _encode_values(planned, source, _as_float(rows, tensor.dtype), chosen)


def _requantize(
    planned: PlannedTensor, stored: Mapping[str, StoredTensor], source: str, chosen: Rows, _: Tally
) -> tuple[np.ndarray, int | None]:
    return _encode_values(planned, source, read_values(source, stored, planned.quantization, chosen), chosen)


def _encode_changed(
    planned: PlannedTensor, stored: Mapping[str, StoredTensor], source: str, chosen: Rows, _: Tally
) -> tuple[np.ndarray, int | None]:
    assert planned.change is not None
    values = planned.change(read_values(source, stored, planned.quantization, chosen))
    return _encode_values(planned, source, values.reshape(-1, planned.shape[-1]), chosen)


def _encode_values(
    planned: PlannedTensor, source: str, values: np.ndarray, chosen: Rows
) -> tuple[np.ndarray, int | None]:
    _check_range(planned, source, values, chosen)
    before = blocks.count_zeros(values, Kind.F32) if planned.is_block_linear else None
    return blocks.quantize(values, planned.type), before


def _repack(
    planned: PlannedTensor, stored: Mapping[str, StoredTensor], source: str, chosen: Rows, tally: Tally
) -> tuple[np.ndarray, int | None]:
    assert planned.quantization is not None
    codes, scales, biases = _read_parts(source, stored, chosen)
    if biases is None:
        undefined = int((scales == 255).sum() if planned.type == Kind.MXFP4 else (scales >= 127).sum())
        if undefined:
            raise _not_finite(source, undefined, chosen, "scales")
        repacked = repack.repack_mxfp4 if planned.type == Kind.MXFP4 else repack.repack_nvfp4
        return repacked(codes, scales), None
    for part in (scales, biases):
        _check_range(planned, source, part, chosen)
    inexact = repack.inexact_in_float16(scales) + repack.inexact_in_float16(biases)
    tally.scales += scales.size + biases.size
    tally.inexact_scales += inexact
    settings = planned.quantization
    before = None
    if inexact and planned.is_block_linear:  # then the zeros of the folder need not be those of the file
        before = blocks.count_zeros(read_values(source, stored, settings, chosen), Kind.F32)
    group_size = int(settings.get("group_size", 64))
    return repack.repack_affine(codes, scales, biases, bits=int(settings["bits"]), group_size=group_size), before


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


@functools.cache
def _half_of_bfloat16() -> np.ndarray:
    """float16 bits for each of the 65536 bfloat16 numbers: looking up is twice as fast as converting."""
    with np.errstate(all="ignore"):
        every = blocks.bfloat16_to_float(np.arange(1 << 16, dtype=np.uint16))
        return every.astype(np.float16).view(np.uint16)


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
