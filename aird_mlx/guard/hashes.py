"""Hashes that cover every byte of a GGUF file, stored in the file itself.

``aird.hash.tensors`` lists the sha256 of each tensor's data, in the file's order. ``aird.hash.root`` is the sha256 of
everything before the tensor data, its own 64 digits read as zeros, and of the file's size: since it covers that list,
it covers the weights, and one hash published elsewhere vouches for the file. Of a file in parts the first has both,
and the root covers each part. What lies between tensors must be zero.
Hashes find damage and edits; who can write the file can write new ones, so only a root known from elsewhere proves
where a file comes from. The sidecar has the format of llama.cpp's ``gguf-hash``, which covers tensor data only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from aird_mlx.errors import IntegrityError
from aird_mlx.guard.structure import Structure, Tensor

ROOT_KEY, TENSORS_KEY = "aird.hash.root", "aird.hash.tensors"
DIGITS = 64
CHUNK = 1 << 20
# Below this, starting threads costs more than they bring.
WORTH_THREADS = 1 << 26


def hash_root(*parts: tuple[int, Structure]) -> str:
    """The root hash computed from the file, or from all its parts; the key that holds it is read as 64 zeros.

    Args:
        parts: descriptor and layout of each, in order; one for a file that was not split.
    """
    digest = hashlib.sha256()
    for descriptor, structure in parts:
        entry = structure.keys.get(ROOT_KEY)
        start = 0
        if entry is not None and entry.end - entry.start == DIGITS:
            for chunk in read_range(descriptor, 0, entry.start):
                digest.update(chunk)
            digest.update(b"0" * DIGITS)
            start = entry.end
        for chunk in read_range(descriptor, start, structure.data_start - start):
            digest.update(chunk)
        digest.update(structure.size.to_bytes(8, "little"))
    return digest.hexdigest()


def hash_tensors(
    descriptor: int, tensors: Sequence[Tensor], progress: Callable[[int, int], None] = lambda done, total: None
) -> list[str]:
    """The sha256 of each tensor's data, hexadecimal.

    Args:
        descriptor: of the file.
        tensors: which.
        progress: called with (tensors done, tensors).

    Raises:
        IntegrityError: the file became shorter.
    """

    def one(tensor: Tensor) -> str:
        return hash_all_data(descriptor, [tensor])

    is_worth_threads = sum(tensor.size for tensor in tensors) >= WORTH_THREADS
    digests = []
    # Threads start with the first task. hashlib lets others run meanwhile.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as executor:
        for digest in executor.map(one, tensors) if is_worth_threads else map(one, tensors):
            digests.append(digest)
            progress(len(digests), len(tensors))
    return digests


def hash_all_data(descriptor: int, tensors: Sequence[Tensor]) -> str:
    """The sha256 of all tensors' data, one behind the other without what is between: a manifest's line of the file."""
    digest = hashlib.sha256()
    for tensor in tensors:
        for chunk in read_range(descriptor, tensor.start, tensor.size):
            digest.update(chunk)
    return digest.hexdigest()


def first_nonzero_gap(descriptor: int, structure: Structure) -> int | None:
    """Where, between tensors, a byte is not zero; None if none is."""
    for start, end in structure.gaps():
        at = start
        for chunk in read_range(descriptor, start, end - start):
            rest = bytes(chunk).lstrip(b"\0")
            if rest:
                return at + len(chunk) - len(rest)
            at += len(chunk)
    return None


def read_range(descriptor: int, start: int, length: int) -> Iterator[memoryview]:
    """The bytes of a range, a chunk at a time; a chunk is overwritten by the next.

    Raises:
        IntegrityError: the file became shorter.
    """
    buffer = memoryview(bytearray(min(length, CHUNK)))
    end = start + length
    while start < end:
        count = os.preadv(descriptor, [buffer[: end - start]], start)
        if count <= 0:
            raise IntegrityError(
                f"hash: the file ends at byte {start} now; it must not change while it is read. Run again."
            )
        yield buffer[:count]
        start += count
