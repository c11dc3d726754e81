"""Writes a manifest into a finished GGUF file, the hashes of all its bytes, and the sidecar beside it.

The file is copied once, to a temporary name: keys stand before the data, so room for them has to be made. Tensor infos
and data stay the same to the byte.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from aird_mlx.errors import IntegrityError
from aird_mlx.guard.cursor import Scalar
from aird_mlx.guard.hashes import DIGITS, ROOT_KEY, TENSORS_KEY, hash_all_data, hash_root, hash_tensors, read_range
from aird_mlx.guard.manifest import Manifest, encode_scalars, manifest_keys
from aird_mlx.guard.structure import Structure, opened, parse
from aird_mlx.workspace import whole_file

COUNT_PLACE = 16


def sidecar_of(path: Path) -> Path:
    """Where the hashes of a file lie beside it: ``NAME.gguf.manifest``."""
    return path.with_name(path.name + ".manifest")


def seal(path: Path, manifest: Manifest) -> str:
    """Write a manifest into a file and the sidecar beside it.

    Args:
        path: a GGUF file without hashes; replaced by one with them, or left as it is.
        manifest: what it shall say. A key that the file has already must have the same value.

    Returns:
        The root hash.

    Raises:
        IntegrityError: the file is damaged, sealed already, or says something else under a key.
        OSError: it cannot be written.
    """
    with opened(path) as descriptor:
        structure = parse(descriptor)
        keys = manifest_keys(manifest)
        for name in (*keys, ROOT_KEY, TENSORS_KEY):
            entry = structure.keys.get(name)
            if entry is not None and (name not in keys or entry.value != keys[name]):
                raise IntegrityError(
                    f"manifest: {path} has {name} already ({entry.value!r:.60}); a file without it is needed. "
                    "Export it again."
                )
        added = {name: value for name, value in keys.items() if name not in structure.keys}
        hashes = hash_tensors(descriptor, structure.tensors)
        everything = hash_all_data(descriptor, structure.tensors)
        added |= {TENSORS_KEY: " ".join(hashes), ROOT_KEY: "0" * DIGITS}
        with whole_file(path) as partial:
            _rewrite(descriptor, structure, partial, added)
            root = write_root([partial])
    names = [tensor.name for tensor in structure.tensors]
    with whole_file(sidecar_of(path)) as partial:
        partial.write_text(sidecar_text(path.name, zip(names, hashes, strict=True), everything), encoding="utf-8")
    return root


def sidecar_text(file: str, hashes: Iterable[tuple[str, str]], everything: str) -> str:
    """Hashes as ``llama-gguf-hash --sha256`` prints them.

    >>> print(sidecar_text("m.gguf", [("a.weight", "12")], "34"), end="")
    sha256    12  m.gguf:a.weight
    sha256    34  m.gguf
    """
    lines = [f"sha256    {digest}  {file}:{name}\n" for name, digest in hashes]
    return "".join([*lines, f"sha256    {everything}  {file}\n"])


def _rewrite(descriptor: int, structure: Structure, target: Path, added: Mapping[str, Scalar]) -> None:
    """Copy a file with more keys; the alignment is the same, so offsets into the data are too."""
    with target.open("wb") as out:
        for chunk in read_range(descriptor, 0, structure.keys_end):
            out.write(chunk)
        out.write(encode_scalars(added))
        for chunk in read_range(descriptor, structure.keys_end, structure.infos_end - structure.keys_end):
            out.write(chunk)
        out.write(bytes(-out.tell() % structure.alignment))
        for chunk in read_range(descriptor, structure.data_start, structure.size - structure.data_start):
            out.write(chunk)
        out.seek(COUNT_PLACE)
        out.write(struct.pack("<Q", len(structure.keys) + len(added)))


def write_root(paths: Sequence[Path]) -> str:
    """Compute the root of a file that has a key for it, or of all its parts, and write it there; gives it back."""
    with ExitStack() as stack:
        out, *others = [stack.enter_context(path.open("r+b" if path == paths[0] else "rb")) for path in paths]
        parts = [(file.fileno(), parse(file.fileno())) for file in (out, *others)]
        root = hash_root(*parts)
        out.seek(parts[0][1].keys[ROOT_KEY].start)
        out.write(root.encode("ascii"))
        out.flush()
        os.fsync(out.fileno())
    return root
