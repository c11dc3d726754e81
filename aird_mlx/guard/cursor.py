"""Reads numbers and strings from the front of a GGUF file, and never further than the file goes.

Keeps one block of the file; what is skipped is not read. Every failure names its byte.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import NoReturn

from aird_mlx.errors import IntegrityError

STRING, ARRAY, UINT32 = 8, 9, 4
# Value type -> how struct reads it.
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}

# What no real file comes near: files beyond are refused rather than read.
MOST_METADATA = 1 << 29
LONGEST_STRING, MOST_TEXT = 1 << 22, 1 << 24
DEEPEST_ARRAY = 4
BLOCK = 1 << 16

Scalar = str | int | float | bool


@dataclass(frozen=True)
class Entry:
    """One key. ``value`` is None for arrays; ``start`` and ``end`` are the bytes of the value, of a string its text."""

    type: int
    value: Scalar | None
    start: int
    end: int


class Cursor:
    """Reads forward through the metadata of an open file, a block at a time."""

    def __init__(self, descriptor: int) -> None:
        self.size = os.fstat(descriptor).st_size
        self.at = 0
        self._descriptor = descriptor
        self._block, self._block_start = b"", 0
        self._end = min(self.size, MOST_METADATA)
        self._text = 0

    def take(self, length: int, what: str) -> bytes:
        """The next bytes."""
        self._reserve(length, what)
        start = self.at - self._block_start
        if start < 0 or start + length > len(self._block):
            self._block = os.pread(self._descriptor, max(length, BLOCK), self.at)
            self._block_start, start = self.at, 0
            if len(self._block) < length:
                self.fail(f"it became shorter while it was read, in {what}")
        self.at += length
        return self._block[start : start + length]

    def skip(self, length: int, what: str) -> None:
        """Go on without reading."""
        self._reserve(length, what)
        self.at += length

    def number(self, form: str, what: str) -> int:
        """One number, as ``struct`` names its form."""
        (value,) = struct.unpack(form, self.take(struct.calcsize(form), what))
        return int(value)

    def count(self, most: int, smallest: int, what: str) -> int:
        """How many things of at least ``smallest`` bytes follow."""
        count = self.number("<Q", f"the number of {what}")
        if count > most or count * smallest > self._end - self.at:
            self.fail(f"{count} {what} are announced; the file has room for {(self._end - self.at) // smallest}")
        return count

    def string(self, longest: int, what: str) -> str:
        """A string that is kept."""
        length = self.number("<Q", f"the length of {what}")
        if length > longest:
            self.fail(f"{what} has {length} bytes; at most {longest} are known")
        self._text += length
        if self._text > MOST_TEXT:
            self.fail(f"more than {MOST_TEXT} bytes of text")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8")

    def entry(self, name: str) -> Entry:
        """The value of a key: read if it is a scalar or a string, walked over if it is an array."""
        kind = self.number("<I", f"the type of {name!r}")
        start = self.at
        value: Scalar | None = None
        if kind == STRING:
            value = self.string(LONGEST_STRING, f"the value of {name!r}")
            start += 8
        elif kind == ARRAY:
            self._walk_array(name, 1)
        elif kind in SCALARS:
            (value,) = struct.unpack(SCALARS[kind], self.take(struct.calcsize(SCALARS[kind]), f"the value of {name!r}"))
        else:
            self.fail(f"the key {name!r} has the unknown type {kind}")
        return Entry(kind, value, start, self.at)

    def _walk_array(self, name: str, depth: int) -> None:
        what = f"the array {name!r}"
        if depth > DEEPEST_ARRAY:
            self.fail(f"{what} is nested more than {DEEPEST_ARRAY} deep")
        kind = self.number("<I", what)
        length = self.number("<Q", what)
        if kind in SCALARS:
            self.skip(length * struct.calcsize(SCALARS[kind]), what)
            return
        if kind not in (STRING, ARRAY):
            self.fail(f"{what} has values of the unknown type {kind}")
        if length > (self._end - self.at) // 8:  # a length of its own is the least that each value takes
            self.fail(f"{what} announces {length} values; the file has room for {(self._end - self.at) // 8}")
        if kind == STRING:
            self._walk_strings(length, what)
            return
        for _ in range(length):
            self._walk_array(name, depth + 1)

    def _walk_strings(self, count: int, what: str) -> None:
        # Vocabularies have hundreds of thousands of them: no call per string.
        unpack = struct.Struct("<Q").unpack_from
        block, start, at, end = b"", self.at, self.at, self._end
        for _ in range(count):
            if at + 8 > start + len(block):
                block, start = os.pread(self._descriptor, BLOCK, at), at
                if at + 8 > end or len(block) < 8:
                    self.at = at
                    self.fail(f"{what} needs 8 bytes here, and the file ends at byte {self.size}")
            at += 8 + unpack(block, at - start)[0]
            if at > end:
                self.fail(f"{what} holds a string that ends at byte {at}, the file at {self.size}")
        self.at = at

    def _reserve(self, length: int, what: str) -> None:
        if length > self._end - self.at:
            limit = f"the file ends at byte {self.size}" if self._end == self.size else f"{self._end} bytes are read"
            self.fail(f"{what} needs {length} bytes here, and {limit}")

    def fail(self, seen: str, at: int | None = None) -> NoReturn:
        raise IntegrityError(
            f"structure: byte {self.at if at is None else at}: {seen:.300}; a whole GGUF file is needed. Get it again."
        )
