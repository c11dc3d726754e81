"""Writing a GGUF file: whole under its name or not there at all, tensor by tensor.

Knows no model: it gets a `gguf.GGUFWriter` whose keys and tensor headers are complete, and the bytes of the tensors.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np
from gguf.gguf_writer import WriterState

from aird_mlx.errors import ExportError
from aird_mlx.gguf_export.keys import encode_keys
from aird_mlx.workspace import whole_file


@contextlib.contextmanager
def whole_gguf(outfile: Path, needed: int) -> Iterator[Path]:
    """`whole_file`, once it is sure that the disk has room.

    Args:
        outfile: the file to be.
        needed: bytes that must be free.

    Raises:
        ExportError: there is no room, or the folder cannot be written.
    """
    try:
        with whole_file(outfile) as partial:
            free = shutil.disk_usage(outfile.parent).free
            if free < needed:
                raise OSError(errno.ENOSPC, f"{free} bytes free")
            yield partial
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise ExportError(
                f"gguf: {outfile.name} does not fit: the disk is full, or a size limit is reached ({error}); {needed} "
                "bytes are needed. Free space, or choose a smaller type."
            ) from error
        raise ExportError(
            f"gguf: {outfile} cannot be written ({error}); a writable folder is needed. Choose another outfile."
        ) from error


def write_tensors(writer: gguf.GGUFWriter, keys: bytes, path: Path, tensors: Iterable[Iterable[np.ndarray]]) -> None:
    """Write header, keys and tensors to ``path``.

    Args:
        writer: with every key and tensor header, nothing written yet; closed at the end, come what may.
        keys: the writer's, from `encode_keys`.
        path: of the file.
        tensors: for each header, in order, the bytes in pieces; asked for the next when one is written.

    Raises:
        OSError: what writing raises, and whatever the pieces raise.
    """
    try:
        file = _write_header(writer, keys, path)
        _align(file, writer.data_alignment)
        for pieces in tensors:
            for piece in pieces:
                file.write(np.ascontiguousarray(piece).data.cast("B"))
            _align(file, writer.data_alignment)
        writer.close()
    finally:
        with contextlib.suppress(OSError):  # closing flushes, which fails again on a full disk
            writer.close()


def _align(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))


def write_outline(writer: gguf.GGUFWriter, path: Path, size: int) -> None:
    """Write header and keys, and let the file be ``size`` bytes longer without a tensor in it (a sparse file)."""
    try:
        file = _write_header(writer, encode_keys(writer.kv_data[0]), path)
        file.truncate(file.tell() + writer.data_alignment + size)
    finally:
        writer.close()


def _write_header(writer: gguf.GGUFWriter, keys: bytes, path: Path) -> BinaryIO:
    writer.write_header_to_file(path)
    assert writer.fout is not None
    file: BinaryIO = writer.fout[0]
    file.write(keys)
    writer.state = WriterState.KV_DATA
    writer.write_ti_data_to_file()
    return file
