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
from aird_mlx.gguf_export.outtypes import NATIVE_KINDS, Kind
from aird_mlx.gguf_export.packing import count_zero_codes
from aird_mlx.gguf_export.stored import StoredTensor
from aird_mlx.gguf_export.tensors import PlannedTensor
from aird_mlx.gguf_export.zero_exact import BITS as ZERO_EXACT
from aird_mlx.gguf_export.zero_exact import quantize_zero_exact

BYTES_AT_A_TIME = 1 << 20  # stay in the cache while they are hashed and written
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

    def add(self, other: Tally) -> None:
        """Count what was counted elsewhere too."""
        for name, count in vars(other).items():
            setattr(self, name, getattr(self, name) + count)

    @property
    def sparsity(self) -> float:
        """Share of zeros in what was written."""
        return self.zeros / max(self.weights, 1)

    @property
    def sparsity_before(self) -> float:
        """Share of zeros in what was stored."""
        return self.zeros_before / max(self.weights, 1)


@dataclass(frozen=True)
class Piece:
    """Some whole rows of a tensor, encoded by itself."""

    planned: PlannedTensor
    start: int
    stop: int

    @property
    def heads(self) -> int:
        """Of these rows, to be reordered."""
        return (self.stop - self.start) * self.planned.rotated_heads // self.planned.shape[0]


# The bytes of some rows, how many weights in them are zero, and how many were before; None: as count says, as now.
Encoded = tuple[np.ndarray, int | None, int | None]


def pieces_of(planned: PlannedTensor) -> Iterator[Piece]:
    """A tensor in pieces of about `BYTES_AT_A_TIME`, in order."""
    rows = planned.shape[0]
    step = max(1, BYTES_AT_A_TIME * rows // max(planned.size_bytes, 1))
    if planned.rotated_heads:  # a head's rows stay together
        head = rows // planned.rotated_heads
        step = -(-step // head) * head
    for start in range(0, rows, step):
        yield Piece(planned, start, min(start + step, rows))


def encode_piece(
    piece: Piece, stored: Mapping[str, StoredTensor], zero_exact: bool = False
) -> tuple[np.ndarray, Tally]:
    """The bytes of some rows, uint8, and what was counted in them; needs nothing of other pieces.

    Args:
        piece: what to write.
        stored: headers of the folder.
        zero_exact: types that can are written with an exact zero.

    Raises:
        ModelError: the file cannot be read.
        ExportError: a value is not finite, or too large for the type it is to be written in.
    """
    planned, tally = piece.planned, Tally()
    if planned.is_exact:
        encoded, zeros, before = _repack(piece, stored, tally)
    else:
        encode = _encode_plain if planned.quantization is None else _requantize
        encoded, zeros, before = encode(piece, stored, zero_exact)
    if planned.is_block_linear:
        tally.zeros = blocks.count_zeros(encoded, planned.type) if zeros is None else zeros
        tally.zeros_before = tally.zeros if before is None else before
        tally.weights = planned.parameters // planned.shape[0] * (piece.stop - piece.start)
    return encoded, tally


def permute_rows(values: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows of q or k from half-against-half to neighbouring pairs.

    Args:
        values: ``[heads * head_dim, in]``, or a bias ``[heads * head_dim]``.
        heads: of this matrix (key-value heads for k); 0 leaves it as it is.

    Returns:
        A new array of the same shape.

    >>> permute_rows(np.arange(8), 2).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    if not heads:
        return values
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def read_values(
    source: str, stored: Mapping[str, StoredTensor], quantization: Mapping[str, Any] | None, start: int, stop: int
) -> np.ndarray:
    """Rows of a weight as float32: its values, or what MLX decodes.

    Args:
        source: name of the weight in the folder.
        stored: headers of the folder.
        quantization: keyword arguments of ``mx.dequantize``, None for plain weights.

    Raises:
        ModelError: the rows cannot be read, or are no weights that MLX quantized.
    """
    if quantization is None:
        return _as_float(stored[source].read_rows(start, stop), stored[source].dtype)
    codes, scales, biases = _read_parts(source, stored, start, stop)
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


def _encode_plain(piece: Piece, stored: Mapping[str, StoredTensor], zero_exact: bool) -> Encoded:
    planned = piece.planned
    tensor, kind = stored[planned.source], planned.type
    rows = tensor.read_rows(piece.start, piece.stop)
    same = tensor.dtype == kind.name
    if kind in INFINITE_BITS and (same or (tensor.dtype, kind) == ("BF16", Kind.F16)):
        # What bfloat16 has below float16's range becomes zero.
        bits, _inexact, vanished = (rows.view(np.uint16), 0, 0) if same else blocks.bfloat16_to_half(rows)
        magnitude = bits << 1  # without the sign
        if not bits.size or magnitude.max() < INFINITE_BITS[kind] << 1:
            zeros = bits.size - int(np.count_nonzero(magnitude))
            return permute_rows(bits, piece.heads).view(np.uint8), zeros, zeros - vanished
    return _quantize(piece, _as_float(rows, tensor.dtype), zero_exact)


def _requantize(piece: Piece, stored: Mapping[str, StoredTensor], zero_exact: bool) -> Encoded:
    planned = piece.planned
    values = read_values(planned.source, stored, planned.quantization, piece.start, piece.stop)
    return _quantize(piece, values, zero_exact)


def _quantize(piece: Piece, values: np.ndarray, zero_exact: bool) -> Encoded:
    planned = piece.planned
    _check_range(planned, values, piece.start)
    before = blocks.count_zeros(values, Kind.F32) if planned.is_block_linear else None
    quantize = quantize_zero_exact if zero_exact and planned.type in ZERO_EXACT else blocks.quantize
    return quantize(permute_rows(values, piece.heads), planned.type), None, before


def _repack(piece: Piece, stored: Mapping[str, StoredTensor], tally: Tally) -> Encoded:
    planned, settings = piece.planned, piece.planned.quantization
    assert settings is not None
    stem = planned.source.removesuffix(".weight")
    codes = stored[planned.source].read_rows(piece.start, piece.stop)
    if f"{stem}.biases" not in stored:
        scales = stored[f"{stem}.scales"].read_rows(piece.start, piece.stop)
        undefined = int((scales == 255).sum() if planned.type == Kind.MXFP4 else (scales >= 127).sum())
        if undefined:
            raise _not_finite(planned, undefined, piece.start, "scales")
        repacked = repack.repack_mxfp4 if planned.type == Kind.MXFP4 else repack.repack_nvfp4
        return repacked(permute_rows(codes, piece.heads), permute_rows(scales, piece.heads)), None, None
    parts = [_read_halves(piece, stored[f"{stem}.{part}"]) for part in ("scales", "biases")]
    (scales, exact_scales, _), (biases, exact_biases, _) = parts
    inexact = sum(count for *_, count in parts)
    tally.scales, tally.inexact_scales = scales.size + biases.size, inexact
    zeros, before = None, None
    bits, group_size = int(settings["bits"]), int(settings.get("group_size", 64))
    if inexact and planned.is_block_linear:  # then the zeros of the folder need not be those of the file
        before = blocks.count_zeros(
            read_values(planned.source, stored, settings, piece.start, piece.stop), Kind.F32
        )  # fmt: skip
    elif bits == 4 and planned.is_block_linear:
        zeros = count_zero_codes(codes, exact_scales, exact_biases, group_size)
    ordered = [permute_rows(part, piece.heads) for part in (codes, scales, biases)]
    return repack.repack_affine(*ordered, bits=bits, group_size=group_size), zeros, before


def _read_halves(piece: Piece, tensor: StoredTensor) -> tuple[np.ndarray, np.ndarray, int]:
    """Scales or biases of some rows as float16, as float32 before that, and how many float16 does not hold."""
    rows = tensor.read_rows(piece.start, piece.stop)
    values = _as_float(rows, tensor.dtype)
    if tensor.dtype == "BF16":
        bits, inexact, _ = blocks.bfloat16_to_half(rows)
        halves = bits.view(np.float16)
    else:
        with np.errstate(over="ignore"):  # refused below
            halves = values.astype(np.float16)
        inexact = 0 if tensor.dtype == "F16" else int(np.count_nonzero(halves != values))
    if not np.isfinite(halves).all():
        _check_range(piece.planned, values, piece.start)
    return halves, values, inexact


def _read_parts(
    source: str, stored: Mapping[str, StoredTensor], start: int, stop: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Codes, scales, and biases if it has any; those of an affine quantization as float32."""
    stem = source.removesuffix(".weight")
    codes = stored[source].read_rows(start, stop)
    scales = stored[f"{stem}.scales"]
    if f"{stem}.biases" not in stored:
        return codes, scales.read_rows(start, stop), None
    biases = stored[f"{stem}.biases"]
    return (
        codes,
        _as_float(scales.read_rows(start, stop), scales.dtype),
        _as_float(biases.read_rows(start, stop), biases.dtype),
    )


def _as_float(rows: np.ndarray, dtype: str) -> np.ndarray:
    return blocks.bfloat16_to_float(rows) if dtype == "BF16" else rows.astype(np.float32, copy=False)


def _check_range(planned: PlannedTensor, values: np.ndarray, start: int) -> None:
    if not values.size:
        return
    largest = max(float(values.max()), -float(values.min()))  # NaN and inf come through
    if not np.isfinite(largest):
        raise _not_finite(planned, int(values.size - np.isfinite(values).sum()), start, "values")
    limit = LARGEST.get(planned.type)
    if limit is not None and largest > limit:
        raise ExportError(
            f"gguf: {planned.source} reaches {largest:.6g}; {NATIVE_KINDS[planned.type]} holds at most {limit:g}. "
            "Use outtype f32 or bf16."
        )


def _not_finite(planned: PlannedTensor, count: int, start: int, what: str) -> ExportError:
    return ExportError(
        f"gguf: {planned.source} holds {count} {what} that are not finite near row {start}; finite weights are "
        "needed. Repair or compress the model again."
    )
