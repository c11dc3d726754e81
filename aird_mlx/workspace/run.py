"""The folder a run works in: ``OUT.partial`` beside the output, renamed to ``OUT`` when everything is done.

A stage's result is a file that is whole or not there, so what exists is complete. A resumed run with the same settings
reads those files instead of computing again. This module knows nothing about stages.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from aird_mlx.errors import AirdError, DirectionError, OutputError, PromptError, ResumeError
from aird_mlx.workspace.records import damaged, read_object, write_json
from aird_mlx.workspace.whole import (
    check_new_folder,
    link_or_copy,
    partial_of,
    remove,
    unfinished_of,
    whole_file,
    writing_to,
)

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
        with ExitStack() as undo:
            undo.callback(self.close)
            self._open(json.loads(json.dumps(settings)), resume)
            undo.pop_all()

    def _open(self, settings: dict[str, Any], resume: bool) -> None:
        unfinished_of(self.folder / "settings.json").unlink(missing_ok=True)
        if resume and any(self.folder.iterdir()):  # else it was killed before it had begun
            _check_same(settings, read_object(self.folder / "settings.json"), self.folder)
            if (self.folder / "timings.json").exists():
                self.timings = read_object(self.folder / "timings.json")
            return
        with self.guarding():
            there = sorted(self.folder.iterdir(), key=lambda path: path.name == "settings.json")  # that one goes last
            if there and there[-1].name != "settings.json":
                raise OutputError(
                    f"output: {self.folder} holds files that no run left there; that name is needed to work in. "
                    "Choose another --out, or move the folder away."
                )
            for path in there:
                remove(path)
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
        except (AirdError, RuntimeError, OSError, ValueError, KeyError, TypeError) as error:
            raise damaged(path, error) from error

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
            remove(self.out / name)
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
