"""A GGUF file in parts, as llama.cpp's ``gguf-split`` names and fills them, each whole or none there.

``NAME-00001-of-00003.gguf`` has all keys, the others only which part they are; tensors keep their order. llama.cpp
loads them all when it is given the first. A manifest in the first part covers the others too: see `hashes.hash_root`.
Source: ``tools/gguf-split`` of llama.cpp.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aird_mlx.errors import ExportError, UsageError
from aird_mlx.gguf_export import ExportPlan, GgufFile, check_new_file, export_gguf, plan_export
from aird_mlx.guard.hashes import ROOT_KEY, read_range
from aird_mlx.guard.manifest import encode_text
from aird_mlx.guard.parts import MOST_PARTS, SPLIT_COUNT, SPLIT_NUMBER, SPLIT_TENSORS, part_path
from aird_mlx.guard.seal import sidecar_of, write_root
from aird_mlx.guard.structure import DEFAULT_ALIGNMENT, Structure, Tensor, opened, padded, parse
from aird_mlx.workspace import folders_above, remove, unfinished_of

KEYS_START = 24  # magic, version, and how many tensors and keys
UNITS = {"K": 10**3, "M": 10**6, "G": 10**9}
UINT16, INT32 = 2, 5


def read_split_size(text: str) -> int:
    """Bytes of ``2G``, ``500M`` or ``100K``, powers of ten as in llama.cpp.

    Raises:
        UsageError: it is no such text.

    >>> read_split_size("2G")
    2000000000
    """
    found = re.fullmatch(r"([1-9]\d{0,11})([KMG])", text.strip().upper())
    if found is None:
        raise UsageError(f"split: size {text!r}; a whole number with K, M or G is needed. Write for example 2G.")
    return int(found[1]) * UNITS[found[2]]


def export_in_parts(
    folder: Path,
    outfile: Path,
    outtype: str,
    *,
    max_size: int | None = None,
    max_tensors: int | None = None,
    finish: Callable[[GgufFile], None] = lambda written: None,
    **how: Any,
) -> GgufFile:
    """`export_gguf` beside its place, what is to be done with the whole file, and then its name, or those of its parts.

    Args:
        folder, outtype, how: as for `export_gguf`.
        outfile: where the file goes, or what its parts are named after; none may exist.
        max_size, max_tensors: see `split_file`; without a limit the file stays whole.
        finish: may change the file in place, and write its sidecar beside it.

    Raises:
        AirdError: as `export_gguf` and `split_file`, or ``finish``; nothing is left behind.
    """
    is_split = max_size is not None or max_tensors is not None
    if is_split:
        check_no_parts(outfile)
    else:
        check_new_file(outfile, {})
    temporary = unfinished_of(outfile)
    with contextlib.ExitStack() as working:
        try:
            working.enter_context(folders_above(outfile))
            remove(temporary)  # of a killed run
            temporary.mkdir()
        except OSError as error:
            raise ExportError(
                f"gguf: {outfile.parent} cannot be written ({error}); a writable folder is needed. Choose another "
                "outfile."
            ) from error
        working.callback(remove, temporary)
        written = export_gguf(folder, temporary / outfile.name, outtype, copied=True, **how)
        finish(written)
        if is_split:
            parts = split_file(written.path, outfile, max_size=max_size, max_tensors=max_tensors)
        else:
            parts = [outfile]
            for path in (sidecar_of(written.path), written.path):
                if path.exists():
                    path.replace(outfile.with_name(path.name))
        size = sum(part.stat().st_size for part in parts)
        return dataclasses.replace(written, path=parts[0], size_bytes=size, parts=tuple(parts) if is_split else ())


def plan_in_parts(
    folder: Path, outtype: str, *, max_size: int | None, max_tensors: int | None, **how: Any
) -> ExportPlan:
    """`plan_export`; where a limit is given it says in how many parts.

    Raises:
        AirdError: as `plan_export`.
    """
    plan = plan_export(folder, outtype, **how)
    if max_size is None and max_tensors is None:
        return plan
    tensors = [Tensor(one.name, one.shape, 0, 0, one.size_bytes) for one in plan.tensors]
    parts = len(group_tensors(tensors, max_size, max_tensors))
    return dataclasses.replace(plan, notes=(*plan.notes, f"the file is written in {parts} parts"))


def check_no_parts(outfile: Path) -> None:
    """Find out whether a file can be written in parts there.

    Raises:
        ExportError: some part of that name exists.
    """
    stem = outfile.name.removesuffix(".gguf")
    pattern = re.compile(re.escape(stem) + r"-\d{5}-of-\d{5}\.gguf")
    there = outfile.parent.iterdir() if outfile.parent.is_dir() else ()
    found = sorted(path for path in there if pattern.fullmatch(path.name))
    if found:
        raise ExportError(
            f"gguf: {found[0]} exists already; a name without parts is needed. Choose another outfile, or remove them."
        )


def split_file(
    source: Path, outfile: Path, *, max_size: int | None = None, max_tensors: int | None = None
) -> list[Path]:
    """Write a GGUF file once more, in parts.

    Args:
        source: read only.
        outfile: what the parts are named after; none may exist.
        max_size: most bytes of tensors in a part; a larger tensor is a part of its own.
        max_tensors: most tensors in a part.

    Returns:
        The parts, in order.

    Raises:
        IntegrityError: ``source`` is damaged. UsageError: there would be too many parts.
        ExportError: a part exists, or cannot be written; then there is none.
    """
    check_no_parts(outfile)
    with opened(source) as descriptor:
        structure = parse(descriptor)
        if structure.alignment != DEFAULT_ALIGNMENT:
            raise ExportError(
                f"gguf: {source} has tensors aligned to {structure.alignment} bytes; llama.cpp splits files with "
                f"{DEFAULT_ALIGNMENT}. Export it again."
            )
        groups = group_tensors(structure.tensors, max_size, max_tensors)
        if len(groups) > MOST_PARTS:
            raise UsageError(f"split: {len(groups)} parts; at most {MOST_PARTS} are known. Use a larger size.")
        paths = [part_path(outfile, number, len(groups)) for number in range(len(groups))]
        renamed: list[Path] = []
        try:
            free = shutil.disk_usage(outfile.parent).free
            if free < structure.size:
                raise OSError(f"{free} bytes are free")
            for number, (path, tensors) in enumerate(zip(paths, groups, strict=True)):
                _write_part(descriptor, structure, unfinished_of(path), number, len(groups), tensors)
            if ROOT_KEY in structure.keys:
                write_root([unfinished_of(path) for path in paths])
            for path in paths:
                unfinished_of(path).replace(path)
                renamed.append(path)
        except OSError as error:
            raise ExportError(
                f"gguf: the parts of {outfile} cannot be written ({error}); room for {structure.size} bytes is needed. "
                "Free space, or choose another outfile."
            ) from error
        finally:  # also after KeyboardInterrupt
            for path in [*map(unfinished_of, paths), *([] if len(renamed) == len(paths) else renamed)]:
                path.unlink(missing_ok=True)
    return paths


def group_tensors(tensors: Sequence[Tensor], max_size: int | None, max_tensors: int | None) -> list[list[Tensor]]:
    """Which tensors go into which part: a new one is begun when the next would be too large, or one too many."""
    groups: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        taken = padded(tensor.size, DEFAULT_ALIGNMENT)
        is_full = max_size is not None and size + taken > max_size
        if groups[-1] and (is_full or len(groups[-1]) == max_tensors):
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += taken
    return groups


def _write_part(
    descriptor: int, structure: Structure, target: Path, number: int, count: int, tensors: Sequence[Tensor]
) -> None:
    own = [
        _key(SPLIT_NUMBER, UINT16, "<H", number),
        _key(SPLIT_COUNT, UINT16, "<H", count),
        _key(SPLIT_TENSORS, INT32, "<i", len(structure.tensors)),
    ]
    keys = len(own) + (len(structure.keys) if number == 0 else 0)
    with target.open("wb") as out:
        out.write(b"GGUF" + struct.pack("<IQQ", structure.version, len(tensors), keys))
        if number == 0:
            for chunk in read_range(descriptor, KEYS_START, structure.keys_end - KEYS_START):
                out.write(chunk)
        out.write(b"".join(own))
        offset = 0
        for tensor in tensors:
            shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
            out.write(encode_text(tensor.name) + shape + struct.pack("<IQ", tensor.type, offset))
            offset += padded(tensor.size, DEFAULT_ALIGNMENT)
        out.write(bytes(-out.tell() % DEFAULT_ALIGNMENT))
        for tensor in tensors:
            for chunk in read_range(descriptor, tensor.start, tensor.size):
                out.write(chunk)
            out.write(bytes(-tensor.size % DEFAULT_ALIGNMENT))


def _key(name: str, kind: int, form: str, value: int) -> bytes:
    return encode_text(name) + struct.pack("<I", kind) + struct.pack(form, value)
