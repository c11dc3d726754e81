"""What exists is complete: stages survive interruption, settings guard a resumed run, a full disk is one line."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from aird_mlx.errors import OutputError, ResumeError
from aird_mlx.workspace import Workspace, read_json, write_json

SETTINGS = {"model": "demo", "seed": 0}


def start(tmp_path: Path, *, resume: bool = False, **changes: Any) -> Workspace:
    return Workspace(tmp_path / "out", SETTINGS | changes, resume=resume)


def run(workspace: Workspace, value: Any, calls: list[Any], name: str = "direction") -> Any:
    """One JSON stage that notes when it is really computed."""

    def compute() -> Any:
        calls.append(value)
        return value

    return workspace.stage(name, f"{name}.json", compute, write_json, read_json)


def files_of(workspace: Workspace) -> set[str]:
    return {path.relative_to(workspace.folder).as_posix() for path in workspace.folder.rglob("*") if path.is_file()}


def test_work_happens_beside_the_output_and_is_renamed_at_the_end(tmp_path: Path) -> None:
    workspace = start(tmp_path)
    run(workspace, {"a": 1}, [])
    workspace.write("keep.json", 1, write_json)
    assert not workspace.out.exists()
    workspace.finish(leave_out=("direction.json",))
    assert not (tmp_path / "out.partial").exists()
    assert {path.name for path in workspace.out.iterdir()} == {"keep.json"}


def test_finish_leaves_out_folders_too(tmp_path: Path) -> None:
    workspace = start(tmp_path)
    workspace.write("stages/dense.json", 1, write_json)
    workspace.finish(leave_out=("stages", "never-written.json"))
    assert list(workspace.out.iterdir()) == []


def test_resumed_run_reads_what_is_there_and_computes_the_rest(tmp_path: Path) -> None:
    calls: list[Any] = []
    first = start(tmp_path)
    assert not first.has_finished_stages()
    run(first, [1, 2], calls)
    again = start(tmp_path, resume=True)
    assert again.has_finished_stages()
    assert again.timings == first.timings != {}
    assert run(again, "other", calls) == [1, 2]
    assert run(again, 3, calls, "next") == 3
    assert calls == [[1, 2], 3]


def test_result_is_what_the_file_says_in_the_first_run_too(tmp_path: Path) -> None:
    assert run(start(tmp_path), (1, 2), []) == [1, 2], "a resumed run could not go on from a tuple"


@pytest.mark.parametrize("settings", ['{"model": "other"}', ""])
def test_resume_with_other_settings_is_refused(tmp_path: Path, settings: str) -> None:
    workspace = start(tmp_path)
    run(workspace, 1, [])
    (workspace.folder / "settings.json").write_text(settings)
    with pytest.raises(ResumeError, match=r"^resume: .*other settings") as raised:
        start(tmp_path, resume=True)
    assert "\n" not in str(raised.value)
    assert (workspace.folder / "direction.json").exists(), "a refused resume must not throw work away"


def test_resume_with_another_seed_is_refused(tmp_path: Path) -> None:
    start(tmp_path)
    with pytest.raises(ResumeError):
        start(tmp_path, resume=True, seed=1)


def test_resume_of_a_folder_without_settings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    with pytest.raises(ResumeError):
        start(tmp_path, resume=True)


def test_resume_without_an_earlier_run_starts_one(tmp_path: Path) -> None:
    assert run(start(tmp_path, resume=True), 5, []) == 5


def test_run_without_resume_starts_again(tmp_path: Path) -> None:
    calls: list[Any] = []
    run(start(tmp_path), 1, calls)
    assert run(start(tmp_path), 2, calls) == 2
    assert calls == [1, 2]


def test_existing_output_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    for resume in (True, False):
        with pytest.raises(OutputError, match=r"^output: .*out exists already"):
            start(tmp_path, resume=resume)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_interruption_while_computing_leaves_nothing_of_the_stage(tmp_path: Path, error: type[BaseException]) -> None:
    workspace = start(tmp_path)

    def interrupted() -> int:
        raise error

    with pytest.raises(error):
        workspace.stage("direction", "direction.json", interrupted, write_json, read_json)
    assert files_of(workspace) == {"settings.json"}
    assert run(start(tmp_path, resume=True), 7, []) == 7


def test_interruption_while_writing_leaves_no_file_that_a_resumed_run_would_read(tmp_path: Path) -> None:
    workspace = start(tmp_path)

    def half(value: Any, path: Path) -> None:
        path.write_text('{"half":')
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        workspace.stage("direction", "direction.json", lambda: 1, half, read_json)
    assert not (workspace.folder / "direction.json").exists()
    assert workspace.timings == {}
    assert run(start(tmp_path, resume=True), 7, []) == 7


def test_interrupted_rewrite_keeps_the_earlier_file(tmp_path: Path) -> None:
    workspace = start(tmp_path)
    workspace.write("timings.json", {"a": 1}, write_json)

    def half(value: Any, path: Path) -> None:
        path.write_text("{")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        workspace.write("timings.json", {"a": 2}, half)
    assert read_json(workspace.folder / "timings.json") == {"a": 1}


def test_interrupted_folder_stage_is_made_again_when_its_maker_writes_beside(tmp_path: Path) -> None:
    workspace = start(tmp_path)
    made: list[Path] = []

    def make(path: Path) -> None:
        made.append(path)
        partial = path.with_name(path.name + ".writing")
        partial.mkdir(exist_ok=True)
        if len(made) == 1:
            raise KeyboardInterrupt
        partial.rename(path)

    with pytest.raises(KeyboardInterrupt):
        workspace.folder_stage("write", "mlx", make)
    for _ in range(2):
        workspace.folder_stage("write", "mlx", make)
    assert len(made) == 2
    assert (workspace.folder / "mlx").is_dir()
    assert "write" in workspace.timings


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (RuntimeError("[write] Unable to write 4096 bytes to file."), "Unable to write"),
    ],
)
def test_failed_write_is_one_clear_error_and_leaves_no_result(tmp_path: Path, error: Exception, reason: str) -> None:
    workspace = start(tmp_path)

    def fail(value: Any, path: Path) -> None:
        path.write_text("half")
        raise error

    with pytest.raises(OutputError, match=rf"^output: .*{reason}") as raised:
        workspace.write("direction.json", 1, fail)
    assert "\n" not in str(raised.value)
    assert not (workspace.folder / "direction.json").exists()


def test_other_errors_are_not_dressed_up_as_output_errors(tmp_path: Path) -> None:
    def fail(value: Any, path: Path) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        start(tmp_path).write("direction.json", 1, fail)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 kB."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root on Linux")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mount is not allowed here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def write_arrays(arrays: dict[str, mx.array], path: Path) -> None:
    mx.save_safetensors(str(path), arrays)


def test_full_disk_is_one_clear_error_and_the_run_can_go_on(small_disk: Path) -> None:
    workspace = Workspace(small_disk / "out", SETTINGS, resume=False)
    run(workspace, 1, [])
    with pytest.raises(OutputError, match=r"^output: .*free space.*--resume") as text_error:
        workspace.stage("text", "text.json", lambda: "x" * 200_000, write_json, read_json)
    with pytest.raises(OutputError, match=r"^output: .*free space.*--resume") as array_error:
        workspace.write("weights.safetensors", {"a": mx.zeros((300, 300))}, write_arrays)
    assert "the disk is full" in str(text_error.value)
    for error in (text_error, array_error):
        assert "\n" not in str(error.value)
    assert not (workspace.folder / "text.json").exists()
    assert not (workspace.folder / "weights.safetensors").exists()
    for path in workspace.folder.glob("writing-*"):
        path.unlink()
    again = Workspace(small_disk / "out", SETTINGS, resume=True)
    calls: list[Any] = []
    assert run(again, 2, calls) == 1
    assert calls == []


def test_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"^output: .*cannot be written") as raised:
        Workspace(tmp_path / "file" / "out", SETTINGS, resume=False)
    assert "\n" not in str(raised.value)


def test_discard_removes_the_working_folder_only(tmp_path: Path) -> None:
    workspace = start(tmp_path)
    workspace.discard()
    assert list(tmp_path.iterdir()) == []


def test_settings_are_compared_by_value_not_by_order(tmp_path: Path) -> None:
    Workspace(tmp_path / "out", {"a": 1, "b": [2]}, resume=False)
    Workspace(tmp_path / "out", {"b": [2], "a": 1}, resume=True)
    assert json.loads((tmp_path / "out.partial" / "settings.json").read_text()) == {"a": 1, "b": [2]}
