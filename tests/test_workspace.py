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
from aird_mlx.workspace import (
    Workspace,
    read_json,
    unfinished_of,
    whole_file,
    whole_folder,
    write_json,
    write_text,
    writing_to,
)

SETTINGS = {"model": "demo", "seed": 0}


open_now: list[Workspace] = []


def start(tmp_path: Path, *, resume: bool = False, **changes: Any) -> Workspace:
    """A new run, as in a new process: the one before it has ended."""
    while open_now:
        open_now.pop().close()
    open_now.append(Workspace(tmp_path / "out", SETTINGS | changes, resume=resume))
    return open_now[-1]


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


@pytest.mark.parametrize(
    ("settings", "said"),
    [('{"model": "other", "seed": 0}', "model was other, is demo"), ("", "settings.json"), ("1", "settings.json")],
)
def test_resume_with_other_settings_is_refused(tmp_path: Path, settings: str, said: str) -> None:
    workspace = start(tmp_path)
    run(workspace, 1, [])
    (workspace.folder / "settings.json").write_text(settings)
    with pytest.raises(ResumeError, match=rf"^resume: .*{said}") as raised:
        start(tmp_path, resume=True)
    assert "\n" not in str(raised.value)
    assert (workspace.folder / "direction.json").exists(), "a refused resume must not throw work away"


def test_resume_with_another_seed_is_refused(tmp_path: Path) -> None:
    start(tmp_path)
    with pytest.raises(ResumeError, match="seed was 0, is 1"):
        start(tmp_path, resume=True, seed=1)


def test_resume_of_a_folder_without_settings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "answers.json").write_text("{}")
    with pytest.raises(ResumeError):
        start(tmp_path, resume=True)


def test_resume_without_an_earlier_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match=r"^resume: there is no .*out\.partial"):
        start(tmp_path, resume=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("resume", [True, False])
def test_second_run_in_the_same_output_is_refused_and_harms_nothing(tmp_path: Path, resume: bool) -> None:
    first = start(tmp_path)
    run(first, 1, [])
    with pytest.raises(OutputError, match=r"^output: another run is working in .*out\.partial"):
        Workspace(tmp_path / "out", SETTINGS, resume=resume)
    assert files_of(first) == {"settings.json", "timings.json", "direction.json"}
    first.finish(leave_out=())
    assert {path.name for path in tmp_path.rglob("*")} == {"out", "direction.json"}, "a lock is left"


def test_run_goes_on_after_one_that_was_killed(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from aird_mlx.workspace import Workspace, write_json, read_json\n"
        "workspace = Workspace(Path(sys.argv[1]), {'seed': 0}, resume=False)\n"
        "workspace.stage('direction', 'direction.json', lambda: 1, write_json, read_json)\n"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path / "out")], check=False).returncode == -9
    workspace = Workspace(tmp_path / "out", {"seed": 0}, resume=True)
    assert run(workspace, 2, []) == 1
    workspace.close()


@pytest.mark.parametrize("name", ["direction.json", "timings.json", "settings.json"])
def test_damaged_file_of_an_earlier_run_is_named(tmp_path: Path, name: str) -> None:
    run(start(tmp_path), {"a": 1}, [])
    os.truncate(tmp_path / "out.partial" / name, 3)
    with pytest.raises(ResumeError, match=rf"^resume: .*{name} cannot be read") as raised:
        run(start(tmp_path, resume=True), {"a": 1}, [])
    assert "\n" not in str(raised.value)
    assert str(raised.value).count("cannot be read") == 1


def test_damaged_arrays_of_an_earlier_run_are_named(tmp_path: Path) -> None:
    def stage() -> Any:
        workspace = start(tmp_path, resume=(tmp_path / "out.partial").exists())
        return workspace.stage(
            "a", "a.safetensors", lambda: {"a": mx.zeros(100)}, write_arrays, lambda p: mx.load(str(p))
        )

    stage()
    os.truncate(tmp_path / "out.partial" / "a.safetensors", 200)
    with pytest.raises(ResumeError, match=r"a\.safetensors cannot be read"):
        stage()


def test_folder_of_somebody_else_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"^output: .*out\.partial holds files that no run left there"):
        start(tmp_path)
    assert (tmp_path / "out.partial" / "thesis.txt").read_text() == "mine"


def test_output_that_appeared_meanwhile_costs_no_work(tmp_path: Path) -> None:
    workspace = start(tmp_path)
    run(workspace, 1, [])
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match=r"^output: .*out was made by somebody else.*--resume"):
        workspace.finish(leave_out=("direction.json",))
    assert files_of(workspace) == {"settings.json", "timings.json", "direction.json"}
    (tmp_path / "out").rmdir()
    start(tmp_path, resume=True).finish(leave_out=())
    assert (tmp_path / "out" / "direction.json").exists()


def test_folder_finishes_under_a_name_of_its_own(tmp_path: Path) -> None:
    workspace = start(tmp_path)
    workspace.write("mlx/config.json", 1, write_json)
    workspace.finish(leave_out=(), elsewhere={"mlx": tmp_path / "model"})
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert names == {"out", "model", "model/config.json"}


def test_folder_whose_own_name_cannot_be_made_is_not_lost(tmp_path: Path) -> None:
    workspace = start(tmp_path)
    workspace.write("mlx/config.json", 1, write_json)
    run(workspace, 1, [])
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"^output: .*file/model\.partial cannot be written.*--mlx-path; --resume"):
        workspace.finish(leave_out=(), elsewhere={"mlx": tmp_path / "file" / "model"})
    assert (workspace.folder / "mlx" / "config.json").exists()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("")
    with pytest.raises(OutputError, match=r"^output: .*taken cannot be written.*it is in .*out/mlx"):
        workspace.finish(leave_out=(), elsewhere={"mlx": tmp_path / "taken"})
    assert (workspace.out / "mlx" / "config.json").exists()
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("out", [".", "/", "", "..", "new/..", "x" * 300])
def test_name_that_cannot_be_a_new_folder_is_one_line(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match=r"^output: .*Choose another --out") as raised:
        Workspace(Path(out), SETTINGS, resume=False)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_resume_is_advised_only_when_there_is_something_to_go_on_from(tmp_path: Path) -> None:
    workspace = start(tmp_path)
    for advised in (False, True):
        with pytest.raises(OutputError) as raised, workspace.guarding():
            raise OSError(errno.ENOSPC, "No space left on device")
        assert ("--resume" in str(raised.value)) == advised
        run(workspace, 1, [])


def test_discard_removes_the_folders_that_were_made_for_the_output(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    Workspace(tmp_path / "mine" / "a" / "b" / "out", SETTINGS, resume=False).discard()
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]
    workspace = Workspace(tmp_path / "mine" / "a" / "out", SETTINGS, resume=False)
    (tmp_path / "mine" / "a" / "other").write_text("")
    workspace.discard()
    assert [path.name for path in (tmp_path / "mine" / "a").iterdir()] == ["other"]


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
        with whole_folder(path):
            if len(made) == 1:
                raise KeyboardInterrupt

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


def test_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "new" / ".writing-model").mkdir(parents=True)
    (tmp_path / "new" / ".writing-model" / "of a killed run").write_text("")
    path = tmp_path / "new" / "model"

    def half(folder: Path) -> None:
        (folder / "half").write_text("")
        raise MemoryError

    with pytest.raises(MemoryError), whole_folder(path) as partial:
        half(partial)
    assert list((tmp_path / "new").iterdir()) == []
    with whole_folder(path) as partial:
        (partial / "config.json").write_text("{}")
        assert not path.exists()
    assert [one.name for one in path.iterdir()] == ["config.json"]
    assert [one.name for one in path.parent.iterdir()] == ["model"]
    with pytest.raises(OSError, match="not empty"), whole_folder(path) as partial:
        (partial / "other").write_text("")
    assert [one.name for one in path.parent.rglob("*")] == ["model", "config.json"], "what is there stays as it was"


def test_file_is_whole_or_not_there_nor_are_folders_made_for_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "model.gguf"
    with pytest.raises(MemoryError), whole_file(path) as partial:
        half(partial)
    assert list(tmp_path.iterdir()) == []
    left = unfinished_of(path)
    left.mkdir(parents=True)
    (left / "of a killed run").write_text("")
    with whole_file(path) as partial:
        partial.write_text("whole")
        assert not path.exists()
    assert [(one.name, one.read_text()) for one in path.parent.iterdir()] == [("model.gguf", "whole")]


def half(partial: Path) -> None:
    partial.write_text("half")
    raise MemoryError


def test_what_a_user_called_writing_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "writing-samples" / "story.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    (tmp_path / "writing-notes.txt").write_text("mine")
    with whole_folder(tmp_path / "samples") as partial:
        (partial / "config.json").write_text("{}")
        assert partial.name.startswith("."), "hidden until it is whole"
    write_text(tmp_path / "notes.txt", "theirs")
    assert mine.read_text() == (tmp_path / "writing-notes.txt").read_text() == "mine"
    assert (tmp_path / "notes.txt").read_text() == "theirs"


def test_what_a_killed_run_was_writing_is_replaced(tmp_path: Path) -> None:
    kept = tmp_path / "kept.txt"
    kept.write_text("kept")
    os.link(kept, tmp_path / ".writing-new.txt")
    write_text(tmp_path / "new.txt", "new")
    assert kept.read_text() == "kept" and (tmp_path / "new.txt").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.txt", "new.txt"]


@pytest.mark.parametrize("resume", [False, True])
def test_run_killed_while_it_wrote_its_settings_had_not_begun(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / ".writing-settings.json").write_text("{")
    Workspace(tmp_path / "out", SETTINGS, resume=resume).close()
    assert [path.name for path in (tmp_path / "out.partial").iterdir()] == ["settings.json"]


def test_arrays_that_cannot_be_written_are_one_line_naming_the_place(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "a.safetensors"
    expected = r"gone cannot be written \(.*Failed to open.*another --out"
    with pytest.raises(OutputError, match=expected) as raised, writing_to(path.parent, "--out"):
        write_arrays({"a": mx.zeros(4)}, path)
    assert "\n" not in str(raised.value)
    with pytest.raises(RuntimeError, match="of another kind"), writing_to(path, "--out"):
        raise RuntimeError("a failure of another kind")


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
    for path in workspace.folder.glob(".writing-*"):
        path.unlink()
    workspace.close()
    again = Workspace(small_disk / "out", SETTINGS, resume=True)
    calls: list[Any] = []
    assert run(again, 2, calls) == 1
    assert calls == []
    again.close()


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
    Workspace(tmp_path / "out", {"a": 1, "b": (2,)}, resume=False).close()
    Workspace(tmp_path / "out", {"b": (2,), "a": 1}, resume=True).close()
    assert json.loads((tmp_path / "out.partial" / "settings.json").read_text()) == {"a": 1, "b": [2]}
