"""The weights of a model folder as they are stored: safetensors headers, and rows of a tensor as arrays.

Knows no names of layers and no GGUF. A tensor is read a few rows at a time, so that no memory holds it whole.
Source: the safetensors format (8 bytes of length, JSON, data).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aird_mlx.errors import ModelError

# How the bytes of each type are held; bfloat16, which numpy has not, by its bits.
ARRAYS = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "F64": np.float64,
    "U32": np.uint32,
    "U8": np.uint8,
}
MOST_UNUSED = 4  # rows read for one that is wanted


@dataclass(frozen=True)
class StoredTensor:
    """One entry of a safetensors header: where it is and what it looks like, not its values."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int = 0

    def read(self, rows: range | np.ndarray) -> np.ndarray:
        """Rows of the matrix that the leading axes make, as `ARRAYS` says; a vector's numbers are its rows.

        Args:
            rows: their numbers, in the order wanted.

        Returns:
            ``[row, in]``, or ``[row]`` of a vector.

        Raises:
            ModelError: the file cannot be read.
        """
        kind = np.dtype(ARRAYS[self.dtype])
        width = self.shape[-1] if len(self.shape) > 1 else 1
        first, last = _ends(rows)
        count = (last - first + 1) * width
        try:
            if len(rows) * MOST_UNUSED < last - first + 1:  # far apart: map the tensor, so that only these are read
                total = math.prod(self.shape)
                mapped: np.ndarray = np.memmap(self.file, kind, "r", self.offset, (total // max(width, 1), width))
                values, first = mapped, 0
            else:
                values = np.fromfile(self.file, kind, count, offset=self.offset + first * width * kind.itemsize)
                if values.size != count:
                    raise OSError(f"{values.size} of {count} values")
        except (OSError, ValueError) as error:
            raise ModelError(
                f"model: {self.name} in {self.file} cannot be read ({error}); the whole file is needed. Copy it again."
            ) from error
        values = values.reshape(-1, width)
        if not isinstance(rows, range) or rows.step != 1:
            values = values[np.asarray(rows) - first]
        return values if len(self.shape) > 1 else values.reshape(-1)


def _ends(rows: range | np.ndarray) -> tuple[int, int]:
    if isinstance(rows, range):
        return (min(rows[0], rows[-1]), max(rows[0], rows[-1])) if rows else (0, -1)
    return (int(rows.min()), int(rows.max())) if len(rows) else (0, -1)


def read_stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Read the headers of every safetensors file of a folder; no weight is read.

    Raises:
        ModelError: there is none, one is truncated or not safetensors, or the index names a missing file.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (json.JSONDecodeError, KeyError, AttributeError, UnicodeDecodeError) as error:
            raise ModelError(
                f"model: {index} is not an index ({error}); a weight_map is needed. Copy the file again."
            ) from error
        files = [folder / name for name in names]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"model: {folder} has no *.safetensors; a model folder is needed. Check the path.")
    stored: dict[str, StoredTensor] = {}
    for file in files:
        for tensor in _read_header(file):
            stored[tensor.name] = tensor
    return stored


def _read_header(file: Path) -> list[StoredTensor]:
    """Parse 8 bytes of length and that much JSON; check that the file is as long as its offsets say."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            size = file.stat().st_size
            if length > size:
                raise ValueError(f"header of {length} bytes in a file of {size}")
            header = json.loads(opened.read(length))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        if size < 8 + length + end:
            raise ValueError(f"{size} bytes, its header says {8 + length + end}")
        return [
            StoredTensor(name, file, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
            for name, entry in entries.items()
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"model: {file} cannot be read ({error}); a whole safetensors file is needed. Copy it again."
        ) from error
