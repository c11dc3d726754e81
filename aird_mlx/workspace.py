"""The folder a run works in: ``OUT.partial`` beside the output, renamed to ``OUT`` when everything is done.

A stage's result is a file; it is written under a temporary name and renamed, so what exists is complete. A resumed
run with the same settings reads those files instead of computing again. This module knows nothing about stages.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from aird_mlx.errors import AirdError, DirectionError, OutputError, PromptError, ResumeError
from aird_mlx.report import from_json

T = TypeVar("T")


class Workspace:
    """A run's working folder, held against other runs until `close`, or until the process ends in whatever way.

    Attributes:
        folder: where stages write.
        timings: seconds per stage, kept across interruptions.

    Raises:
        OutputError: ``out`` exists, cannot be made, or another run is working on it.
        ResumeError: there is no earlier run to resume, it had other settings, or its files are damaged.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
        check_new_folder(out, "--out")
        self.out = out
        self.folder = partial_of(out)
        self.timings: dict[str, float] = {}
        if resume:
            check_started(out)
        self._made = [parent for parent in out.absolute().parents if not parent.exists()]
        with self.guarding():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock: int | None = _lock(self.folder)
        try:
            self._open(json.loads(json.dumps(settings)), resume)
        except BaseException:
            self.close()
            raise

    def _open(self, settings: dict[str, Any], resume: bool) -> None:
        (self.folder / "writing-settings.json").unlink(missing_ok=True)
        if resume and any(self.folder.iterdir()):  # else it was killed before it had begun
            _check_same(settings, _read_keys(self.folder / "settings.json"), self.folder)
            if (self.folder / "timings.json").exists():
                self.timings = _read_keys(self.folder / "timings.json")
            return
        with self.guarding():
            there = sorted(self.folder.iterdir(), key=lambda path: path.name == "settings.json")  # that one goes last
            if there and there[-1].name != "settings.json":
                raise OutputError(
                    f"output: {self.folder} holds files that no run left there; that name is needed to work in. "
                    "Choose another --out, or move the folder away."
                )
            for path in there:
                _remove(path)
        self.write("settings.json", settings, write_json)

    def close(self) -> None:
        """Let other runs have the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def stage(
        self,
        name: str,
        file: str,
        compute: Callable[[], T],
        write: Callable[[T, Path], None],
        read: Callable[[Path], T],
    ) -> T:
        """The result of a stage: read from ``file`` when it is there, else computed and written.

        The result is read back in both cases, so a resumed run goes on from the very same values.

        Raises:
            ResumeError: the file is damaged.
        """
        path = self.folder / file
        if not path.exists():
            started = time.monotonic()
            result = compute()
            self.write(file, result, write)
            self._finished(name, started)
        try:
            return read(path)
        except ResumeError:
            raise
        except (AirdError, RuntimeError, OSError, ValueError, KeyError, TypeError, SyntaxError) as error:
            raise _damaged(path, error) from error

    def write(self, file: str, value: T, write: Callable[[T, Path], None]) -> None:
        """Write a file of a stage, complete or not at all; a failed write leaves nothing that takes up space."""
        path = self.folder / file
        with self.guarding(), whole_file(path) as partial:
            write(value, partial)

    def folder_stage(self, name: str, folder: str, make: Callable[[Path], None]) -> None:
        """A stage whose result is a folder that ``make`` creates in one go; skipped when it is there."""
        path = self.folder / folder
        if not path.exists():
            started = time.monotonic()
            with self.guarding():
                make(path)
            self._finished(name, started)

    @contextmanager
    def block_stage(self, name: str) -> Iterator[None]:
        """A stage that writes block after block, and so knows itself how far it has come."""
        started = time.monotonic()
        with self.guarding():
            yield
        self._finished(name, started)

    @contextmanager
    def working(self) -> Iterator[None]:
        """The time of a run: when it fails, what it finished is kept for `resume`, and without that nothing is.

        Nothing is kept of a run that the dense model or the prompts are not fit for: it could only lead there again.
        """
        try:
            yield
        except (DirectionError, PromptError):
            self.discard()
            raise
        except BaseException as error:
            if not self.has_finished_stages():
                self.discard()
            elif isinstance(error, KeyboardInterrupt) and self.folder.exists():
                error.args = (f"the finished stages are kept in {self.folder}. Run again with --resume to go on.",)
            raise
        finally:
            self.close()

    def _finished(self, name: str, started: float) -> None:
        self.timings[name] = round(self.timings.get(name, 0.0) + time.monotonic() - started, 3)
        self.write("timings.json", self.timings, write_json)

    def guarding(self) -> AbstractContextManager[None]:
        """Context in which a full disk or a forbidden folder becomes one clear `OutputError`."""
        return writing_to(self.folder, "--out; --resume then goes on" if self.has_finished_stages() else "--out")

    def finish(self, leave_out: tuple[str, ...], *, elsewhere: Mapping[str, Path] | None = None) -> None:
        """Give the folder its final name, then drop the files only a resumed run needs.

        Args:
            leave_out: files and folders to drop.
            elsewhere: folders that get a name of their own outside, which is all or nothing as well.

        Raises:
            OutputError: a name is taken by now, or cannot be written. Nothing that was computed is lost.
        """
        if self.out.exists():
            raise OutputError(
                f"output: {self.out} was made by somebody else while this run was working; a free name is needed. "
                f"Move it away and run again with --resume: all results are in {self.folder}."
            )
        copies = {name: partial_of(path) for name, path in (elsewhere or {}).items()}
        try:
            for name, copy in copies.items():
                with writing_to(copy, "--mlx-path; --resume then goes on"):
                    shutil.rmtree(copy, ignore_errors=True)
                    shutil.copytree(self.folder / name, copy, copy_function=link_or_copy)
            with self.guarding():
                self.folder.rename(self.out)
            for name, path in (elsewhere or {}).items():
                with writing_to(path, f"place for it: it is in {self.out / name}"):
                    copies[name].rename(path)
        finally:
            for copy in copies.values():
                shutil.rmtree(copy, ignore_errors=True)
        for name in (*leave_out, *copies, "settings.json", "timings.json"):
            _remove(self.out / name)
        self.close()

    def has_finished_stages(self) -> bool:
        """Whether a resumed run would find anything to go on from."""
        return bool(self.timings) or any(self.folder.rglob("*.safetensors"))

    def discard(self) -> None:
        """Remove the working folder, and the folders above it that were made for it and hold nothing else."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            for parent in self._made:
                parent.rmdir()
        self.close()


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
    """The name that a folder has while it is being written."""
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
        above = next((parent for parent in path.absolute().parents if parent.exists()), path)
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise OutputError(
            f"output: {path} cannot be used ({error.strerror}); a writable place is needed. Choose another {option}."
        ) from error
    if taken:
        raise OutputError(
            f"output: {path} exists already; a new folder is needed. Choose another {option}, or remove it."
        )
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        reason = "may not be written to" if above.is_dir() else "is a file"
        raise OutputError(
            f"output: {path} cannot be written ({above} {reason}); a writable place is needed. Choose another {option}."
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


def check_started(out: Path) -> None:
    """Make sure that there is an interrupted run to resume.

    Raises:
        ResumeError: there is none.
    """
    if not partial_of(out).is_dir():
        raise ResumeError(
            f"resume: there is no {partial_of(out)}; what an interrupted run left is needed. "
            "Give the --out of that run, or run without --resume."
        )


def _lock(folder: Path) -> int:
    """Lock the folder itself: no lock file is left over, and the system unlocks it even when a process is killed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held = False
    except OSError:  # a disk that knows no locks
        held = True
    else:
        # Between open and lock the other run may have finished: then this name is gone, or is another folder's.
        held = folder.exists() and os.path.samestat(os.fstat(descriptor), folder.stat())
    if not held:
        os.close(descriptor)
        raise OutputError(
            f"output: another run is working in {folder}; a folder of one's own is needed. "
            "Choose another --out, or wait until it ends."
        )
    return descriptor


def _check_same(now: Mapping[str, Any], then: Mapping[str, Any], folder: Path) -> None:
    for key in sorted({*now, *then}):
        if now.get(key) != then.get(key):
            raise ResumeError(
                f"resume: {folder} was started with other settings ({key} was {then.get(key)}, is {now.get(key)}); "
                "the same settings are needed to go on. Repeat them, or run without --resume to start again."
            )


def _read_keys(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict):
        raise _damaged(path, TypeError("keys with values are expected"))
    return found


def _damaged(path: Path, error: Exception) -> ResumeError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].split("; ")[0]
    return ResumeError(
        f"resume: {path} cannot be read ({reason}); what the earlier run wrote is needed, undamaged. "
        "Remove it to compute it again, or run without --resume to start again."
    )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """A second name for a file where the disk allows one: weights are large."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def write_json(value: Any, path: Path) -> None:
    """Write a plain value as JSON."""
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def write_record(record: Any, path: Path) -> None:
    """Write a frozen dataclass of results as JSON."""
    write_json(dataclasses.asdict(record), path)


def read_record(kind: type[T], path: Path) -> T:
    """Read it back.

    Raises:
        AirdError: the text is not that of one. OSError: there is no such file.
    """
    return from_json(kind, path.read_text(encoding="utf-8"))


def read_json(path: Path) -> Any:
    """Read a plain value back.

    Raises:
        ResumeError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name to write a file under, beside ``path``; it gets its own name at the end, or is not there at all."""
    partial = path.with_name("writing-" + path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)  # what a killed run left may be another file's second name
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """`whole_file` for a folder: a new and empty one to write in."""
    partial = path.with_name("writing-" + path.name)
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
