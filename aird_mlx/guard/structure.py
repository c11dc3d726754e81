"""The layout of a GGUF file, read as if its author meant harm: every size, count and offset is checked before use.

Never holds more than small strings and one line per tensor: arrays are walked, tensor data is not read. Stricter than
llama.cpp where that costs nothing: tensors lie one behind the other, and what is between them is zero.
Source: GGUF v3, ``docs/gguf.md`` and ``gguf.cpp`` of ggml.

    magic u32 | version u32 | tensors u64 | keys u64 | keys | tensor infos | zeros to alignment | tensor data
    key:    string name, u32 type, value          string: u64 length, bytes          array: u32 type, u64 count, values
    tensor: string name, u32 dimensions, u64 shape..., u32 type, u64 offset into the tensor data
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from aird_mlx.errors import AirdError
from aird_mlx.guard.cursor import UINT32, Cursor, Entry

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

# What no real file comes near: files beyond are refused rather than read.
MOST_KEYS = MOST_TENSORS = 65_536
LONGEST_KEY, LONGEST_NAME = 65_535, 63  # GGML_MAX_NAME counts a zero byte
MOST_ALIGNMENT = 1 << 20


@dataclass(frozen=True)
class Tensor:
    """Where a tensor's data lies; ``start`` counts from the file's beginning; shape as GGUF has it, ``[in, out]``."""

    name: str
    shape: tuple[int, ...]
    type: int
    start: int
    size: int

    @property
    def end(self) -> int:
        """Where the byte behind its data lies."""
        return self.start + self.size


@dataclass(frozen=True)
class Structure:
    """A file's layout. ``keys_end`` is where tensor infos start, ``data_start`` where tensor data does; bytes."""

    version: int
    keys: dict[str, Entry]
    tensors: tuple[Tensor, ...]
    keys_end: int
    infos_end: int
    data_start: int
    alignment: int
    size: int

    def text(self, key: str) -> str | None:
        """The value of a string key, None if there is none."""
        entry = self.keys.get(key)
        return entry.value if entry is not None and isinstance(entry.value, str) else None

    def whole(self, key: str) -> int | None:
        """The value of a key that holds a whole number, None if there is none."""
        entry = self.keys.get(key)
        return entry.value if entry is not None and isinstance(entry.value, int) else None

    def gaps(self) -> Iterator[tuple[int, int]]:
        """The ranges ``[start, end)`` that hold nothing: before, between and after tensors."""
        at = self.infos_end
        for tensor in self.tensors:
            yield at, tensor.start
            at = tensor.end
        yield at, self.size


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A file descriptor for reading; closed at the end.

    Raises:
        AirdError: there is no such file, or it may not be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    try:
        if not os.path.isfile(path):
            raise _unreadable(path, "not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def _unreadable(path: Path, reason: str) -> AirdError:
    return AirdError(f"structure: {path} cannot be read ({reason}); a GGUF file is needed. Check the path.")


def read_structure(path: Path) -> Structure:
    """Read a file's layout; see `parse`.

    Raises:
        AirdError: it cannot be opened.
        IntegrityError: it is no GGUF file, or one that contradicts itself.
    """
    with opened(path) as descriptor:
        return parse(descriptor)


def parse(descriptor: int) -> Structure:
    """Read the layout of an open file: keys, tensor infos, and where the data is. No tensor data is read.

    Raises:
        IntegrityError: the first thing that is wrong, with its place in bytes.
    """
    cursor = Cursor(descriptor)
    magic = cursor.take(4, "the magic")
    if magic != MAGIC:
        cursor.fail(f"it starts with {magic!r}, not {MAGIC!r}", 0)
    version = cursor.number("<I", "the version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        other = ", big-endian" if swapped in VERSIONS else ""
        cursor.fail(f"version {version}{other}; only little-endian {' and '.join(map(str, VERSIONS))} are known", 4)
    tensor_count = cursor.count(MOST_TENSORS, 24, "tensors")
    key_count = cursor.count(MOST_KEYS, 13, "keys")
    keys: dict[str, Entry] = {}
    for _ in range(key_count):
        name = cursor.string(LONGEST_KEY, "a key's name")
        if not name or name in keys:
            cursor.fail(f"the key {name!r} {'is there twice' if name else 'has no name'}")
        keys[name] = cursor.entry(name)
    keys_end = cursor.at
    alignment = _alignment(cursor, keys)
    tensors, infos_end = _tensors(cursor, tensor_count, alignment)
    data_start = padded(infos_end, alignment) if tensors else infos_end
    placed = tuple(replace(one, start=data_start + one.start) for one in tensors)
    end = placed[-1].end if placed else infos_end
    if end > cursor.size:
        last = placed[-1]
        cursor.fail(f"the tensor {last.name!r} ends at byte {end}, the file at {cursor.size}", last.start)
    if cursor.size - end >= alignment:
        cursor.fail(f"{cursor.size - end} bytes follow the last tensor", end)
    return Structure(version, keys, placed, keys_end, infos_end, data_start, alignment, cursor.size)


def _alignment(cursor: Cursor, keys: dict[str, Entry]) -> int:
    entry = keys.get("general.alignment")
    if entry is None:
        return DEFAULT_ALIGNMENT
    alignment = entry.value
    if entry.type != UINT32 or not isinstance(alignment, int) or alignment & (alignment - 1) or alignment == 0:
        cursor.fail(f"general.alignment is {alignment!r:.20} of type {entry.type}; a power of two is needed")
    if alignment > MOST_ALIGNMENT:
        cursor.fail(f"general.alignment is {alignment}; at most {MOST_ALIGNMENT} is known")
    return alignment


def _tensors(cursor: Cursor, count: int, alignment: int) -> tuple[list[Tensor], int]:
    """Tensor infos, ``start`` counted from the beginning of the data, and where the infos end."""
    tensors: list[Tensor] = []
    names = set()
    expected = 0
    for _ in range(count):
        name = cursor.string(LONGEST_NAME, "a tensor's name")
        if name in names:
            cursor.fail(f"the tensor {name!r} is there twice")
        names.add(name)
        dimensions = cursor.number("<I", f"the dimensions of {name!r}")
        if not 0 < dimensions <= 4:
            cursor.fail(f"the tensor {name!r} has {dimensions} dimensions; 1 to 4 are known")
        shape = tuple(cursor.number("<Q", f"the shape of {name!r}") for _ in range(dimensions))
        kind = cursor.number("<I", f"the type of {name!r}")
        offset = cursor.number("<Q", f"the offset of {name!r}")
        if kind not in tensor_types():
            cursor.fail(f"the tensor {name!r} has the unknown type {kind}")
        weights_per_block, bytes_per_block = tensor_types()[kind]
        weights = 1
        for length in shape:
            weights *= length  # Python's whole numbers do not overflow
        if not weights or shape[0] % weights_per_block:
            cursor.fail(f"the tensor {name!r} of shape {list(shape)} does not fit its type {kind}")
        size = weights // weights_per_block * bytes_per_block
        if size > cursor.size:
            cursor.fail(f"the tensor {name!r} needs {size} bytes, the file has {cursor.size}")
        if offset != expected:
            cursor.fail(f"the tensor {name!r} is at offset {offset}; {expected}, behind the one before, is needed")
        tensors.append(Tensor(name, shape, kind, offset, size))
        expected = padded(offset + size, alignment)
    return tensors, cursor.at


@functools.cache
def tensor_types() -> dict[int, tuple[int, int]]:
    """By type: weights in a block, bytes of a block."""
    from gguf.constants import GGML_QUANT_SIZES

    return {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}


def padded(at: int, alignment: int) -> int:
    """The next multiple of ``alignment`` from ``at`` on."""
    return -(-at // alignment) * alignment
