"""The folder a run works in: ``OUT.partial`` beside the output, renamed to ``OUT`` when everything is done.

A stage's result is a file; it is written under a temporary name and renamed, so what exists is complete. A resumed
run with the same settings reads those files instead of computing again. This module knows nothing about stages.
"""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from aird_mlx.errors import OutputError, ResumeError

T = TypeVar("T")


class Workspace:
    """A run's working folder.

    Attributes:
        folder: where stages write.
        timings: seconds per stage, kept across interruptions.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
        self.out = out
        self.folder = out.with_name(out.name + ".partial")
        self.timings: dict[str, float] = {}
        self._open(json.dumps(settings, sort_keys=True), resume)

    def _open(self, settings: str, resume: bool) -> None:
        if self.out.exists():
            raise OutputError(
                f"output: {self.out} exists already; a new folder is needed. Choose another --out, or remove it."
            )
        saved = self.folder / "settings.json"
        if resume and self.folder.exists():
            if not saved.is_file() or saved.read_text(encoding="utf-8") != settings:
                raise ResumeError(
                    f"resume: {self.folder} was started with other settings; the same settings are needed to go on. "
                    "Repeat them, or run without --resume to start again."
                )
            timings = self.folder / "timings.json"
            if timings.is_file():
                self.timings = json.loads(timings.read_text(encoding="utf-8"))
            return
        with self.guarding():
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            saved.write_text(settings, encoding="utf-8")

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
        """
        path = self.folder / file
        if not path.exists():
            started = time.monotonic()
            result = compute()
            self.write(file, result, write)
            self._finished(name, started)
        return read(path)

    def write(self, file: str, value: T, write: Callable[[T, Path], None]) -> None:
        """Write a file of a stage, complete or not at all; a failed write leaves nothing that takes up space."""
        path = self.folder / file
        partial = path.with_name("writing-" + path.name)
        with self.guarding():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write(value, partial)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)

    def folder_stage(self, name: str, folder: str, make: Callable[[Path], None]) -> None:
        """A stage whose result is a folder that ``make`` creates in one go; skipped when it is there."""
        path = self.folder / folder
        if not path.exists():
            started = time.monotonic()
            with self.guarding():
                make(path)
            self._finished(name, started)

    def _finished(self, name: str, started: float) -> None:
        self.timings[name] = round(time.monotonic() - started, 3)
        self.write("timings.json", self.timings, write_json)

    def guarding(self) -> _Guard:
        """Context in which a full disk or a forbidden folder becomes one clear `OutputError`."""
        return _Guard(self.folder)

    def finish(self, leave_out: tuple[str, ...]) -> None:
        """Drop the files only a resumed run needs and give the folder its final name."""
        with self.guarding():
            for name in (*leave_out, "settings.json", "timings.json"):
                path = self.folder / name
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            self.folder.rename(self.out)

    def has_finished_stages(self) -> bool:
        """Whether a resumed run would find anything to go on from."""
        return bool(self.timings)

    def discard(self) -> None:
        """Remove the working folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


class _Guard:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        # mx.save_safetensors reports a failed write as RuntimeError.
        if isinstance(error, OSError):
            reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
            raise OutputError(
                f"output: {self._folder} cannot be written ({reason}); a writable place with free space is needed. "
                "Free space or choose another --out; --resume then goes on."
            ) from error
        if isinstance(error, RuntimeError) and "write" in str(error).lower():
            raise OutputError(
                f"output: {self._folder} cannot be written ({str(error).splitlines()[0]}); a writable place with free "
                "space is needed. Free space or choose another --out; --resume then goes on."
            ) from error


def write_json(value: Any, path: Path) -> None:
    """Write a plain value as JSON."""
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a plain value back."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_whole(path: Path, text: str) -> None:
    """Write a file under a temporary name beside it and rename it, so that it is whole or not there.

    Raises:
        OutputError: it cannot be written.
    """
    partial = path.with_name(path.name + ".writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise OutputError(
            f"output: {path} cannot be written ({error.strerror or error}); a writable place with free space is "
            "needed. Choose another name."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
