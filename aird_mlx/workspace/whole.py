"""Files and folders that are whole or not there: written under another name, renamed at the end.

What cannot be written is one clear error; what would not fit, or has a name that is taken, is found out before.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from aird_mlx.errors import OutputError


def unfinished_of(path: Path) -> Path:
    """The name that a file or folder has while it is being written.

    Hidden, and such as nobody gives to their own, since what has it is removed. It ends like the final one: what MLX
    and matplotlib write depends on the ending.
    """
    return path.with_name(".writing-" + path.name)


@contextmanager
def folders_above(path: Path) -> Iterator[None]:
    """Make the folders that ``path`` is to lie in; at the end those of them go again that hold nothing."""
    made = [folder for folder in path.parents if not folder.exists()]  # the innermost first
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with suppress(OSError):  # the first that is not empty ends it
            for folder in made:
                folder.rmdir()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name to write a file under, beside ``path``; it gets its own name at the end, or is not there at all."""
    partial = unfinished_of(path)
    with folders_above(path):
        remove(partial)  # what a killed run left may be another file's second name
        try:
            yield partial
            partial.replace(path)
        finally:  # also after KeyboardInterrupt
            partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """`whole_file` for a folder: a new and empty one to write in."""
    partial = unfinished_of(path)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file that is whole or not there.

    Raises:
        OutputError: it cannot be written.
    """
    with writing_to(path, "name"), whole_file(path) as partial:
        write(partial)


def write_text(path: Path, text: str) -> None:
    """`write_whole` for text."""
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def hash_file(path: Path) -> str:
    """The sha256 of a file's bytes, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as opened:
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """A second name for a file where the disk allows one: weights are large."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def writing_to(place: Path, choose: str) -> Iterator[None]:
    """Context in which a full disk or a forbidden folder becomes one clear error.

    Args:
        place: what is written.
        choose: another one of which may help: an option, say.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError):
            reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        elif any(word in str(error).lower() for word in ("write", "[save_")):  # what MLX says of a safetensors file
            reason = str(error).splitlines()[0]
        else:
            raise
        raise OutputError(
            f"output: {place} cannot be written ({reason}); a writable place with free space is needed. "
            f"Free space or choose another {choose}."
        ) from error


def partial_of(path: Path) -> Path:
    """The name that a run's folder has until the run has ended."""
    return path.with_name(path.name + ".partial")


def check_new_folder(path: Path, option: str) -> None:
    """Find out before a long run whether a new folder can be made at ``path``.

    Args:
        path: the folder.
        option: where the user gave it.

    Raises:
        OutputError: it is there already, or nothing can be written where it would be.
    """
    try:
        taken = path.name in ("", "..") or path.exists() or path.is_symlink()
    except OSError as error:
        raise _unusable(path, error, option) from error
    if taken:
        raise OutputError(
            f"output: {path} exists already; a new folder is needed. Choose another {option}, or remove it."
        )
    check_writable(path, option)


def check_writable(path: Path, option: str) -> None:
    """Find out before the work whether something new can be made at ``path``, folders above it included.

    Args:
        path: of a file or folder that is not there yet.
        option: where the user gave it.

    Raises:
        OutputError: nothing can be written there.
    """
    try:
        above = next((parent for parent in path.absolute().parents if parent.exists()), path)
    except OSError as error:
        raise _unusable(path, error, option) from error
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        reason = "may not be written to" if above.is_dir() else "is a file"
        raise OutputError(
            f"output: {path} cannot be written ({above} {reason}); a writable place is needed. Choose another {option}."
        )


def _unusable(path: Path, error: OSError, option: str) -> OutputError:
    """Of a name that is too long, or below a folder that may not be looked into."""
    return OutputError(
        f"output: {path} cannot be used ({error.strerror}); a writable place is needed. Choose another {option}."
    )


def check_space(path: Path, needed: float, option: str) -> None:
    """Find out before the work whether its files will fit on the disk.

    Args:
        path: what will be written; need not be there yet.
        needed: bytes.
        option: where the user gave it.

    Raises:
        OutputError: there is less room.
    """
    above = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    free = shutil.disk_usage(above).free
    if free < needed:
        raise OutputError(
            f"output: {above} has {free / 1e9:.1f} GB free; {needed / 1e9:.1f} GB are needed. Free space, or choose "
            f"another {option}."
        )
