"""Verify: any byte that changes is found, every verdict says what was seen, and nothing heavy is needed for it."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from aird_mlx.errors import AirdError, UsageError
from aird_mlx.guard.hashes import ROOT_KEY
from aird_mlx.guard.manifest import Manifest
from aird_mlx.guard.seal import seal, sidecar_of
from aird_mlx.guard.structure import read_structure
from aird_mlx.guard.verify import verify_file
from aird_mlx.report import Verification, from_json
from aird_mlx_cli.main import main


def statuses(found: Verification) -> dict[str, str]:
    return {check.name: check.status for check in found.checks}


def change(path: Path, at: int, value: int = 0xFF) -> None:
    with path.open("r+b") as out:
        out.seek(at)
        before = out.read(1)[0]
        out.seek(at)
        out.write(bytes([before ^ value]))


def test_untouched_file_passes_every_check(copy: Path) -> None:
    for fast in (False, True):
        found = verify_file(copy, fast=fast)
        assert found.exit_code == 0 and found.known
        assert set(statuses(found).values()) == {"passed"}
        assert found.root == read_structure(copy).text(ROOT_KEY)


def test_a_thousand_single_byte_changes_are_all_found(copy: Path) -> None:
    sidecar_of(copy).unlink()  # the file alone must do
    structure = read_structure(copy)
    content = copy.read_bytes()
    chance = random.Random(1)
    gaps = [at for start, end in structure.gaps() for at in range(start, end)]
    places = [chance.randrange(len(content)) for _ in range(700)]
    places += [chance.randrange(structure.data_start) for _ in range(250)]
    places += gaps[:50]
    places += [chance.randrange(len(content)) for _ in range(1000 - len(places))]
    assert gaps and len(places) == 1000
    missed = []
    with copy.open("r+b", buffering=0) as out:
        for at in places:
            out.seek(at)
            out.write(bytes([content[at] ^ chance.randrange(1, 256)]))
            if verify_file(copy).exit_code != 5:
                missed.append(at)
            out.seek(at)
            out.write(content[at : at + 1])
    assert missed == []
    assert verify_file(copy).exit_code == 0


def test_every_single_byte_of_a_file_with_gaps_is_watched(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name in ("a", "b", "c"):
        writer.add_tensor(name, np.arange(5, dtype=np.float32))  # 20 bytes, and 12 of padding
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    seal(path, Manifest(facts={"version": "1"}, no_probe="none"))
    sidecar_of(path).unlink()
    assert sum(end - start for start, end in read_structure(path).gaps()) >= 36
    missed = []
    for at in range(path.stat().st_size):
        change(path, at, 1)
        if verify_file(path).exit_code != 5:
            missed.append(at)
        change(path, at, 1)
    assert missed == [] and verify_file(path).exit_code == 0


def test_every_byte_of_the_manifests_own_names_matters(copy: Path) -> None:
    """A file must not become unknown, which is no failure, by losing the name of a key."""
    content = copy.read_bytes()
    sidecar_of(copy).unlink()
    for name in (b"aird.hash.root", b"aird.hash.tensors"):
        start = content.index(name)
        for at in range(start - 8, start + len(name) + 12):
            change(copy, at, 1)
            assert verify_file(copy).exit_code == 5, at - start
            change(copy, at, 1)


def test_file_cut_at_any_length_fails(copy: Path) -> None:
    content = copy.read_bytes()
    chance = random.Random(2)
    lengths = {0, 1, 3, 4, 23, 24, *range(len(content) - 40, len(content))}
    lengths |= {chance.randrange(len(content)) for _ in range(150)}
    for length in sorted(lengths):
        copy.write_bytes(content[:length])
        assert verify_file(copy).exit_code == 5, length
    copy.write_bytes(content + bytes(1))
    assert verify_file(copy).exit_code == 5, "a longer file is another file"


def test_what_changed_is_said(copy: Path) -> None:
    tensor = read_structure(copy).tensors[3]
    change(copy, tensor.start + 5)
    found = verify_file(copy)
    assert statuses(found) | {"tensors": "failed", "sidecar": "failed"} == statuses(found)
    assert statuses(found)["metadata"] == "passed"
    assert all(tensor.name in check.said for check in found.checks if check.status == "failed")


def test_changed_template_is_shown(copy: Path) -> None:
    at = copy.read_bytes().index(b"<|im_start|>assistant")  # the file's own, which stands before the manifest's copy
    change(copy, at + 3, 0x20)
    found = verify_file(copy)
    said = {check.name: check.said for check in found.checks}
    assert statuses(found)["template"] == statuses(found)["metadata"] == "failed"
    assert "is now" in said["template"] and "<|iM_start" in said["template"]


def test_fast_finds_changed_keys_and_draws_other_tensors_each_time(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aird_mlx.guard.verify.FAST_BYTES", 1)
    tensor = read_structure(copy).tensors[0]
    change(copy, tensor.start)
    results = {verify_file(copy, fast=True, seed=seed).exit_code for seed in range(40)}
    assert results == {0, 5}, "4 of the tensors are looked at"
    assert verify_file(copy).exit_code == 5
    change(copy, tensor.start)
    change(copy, copy.read_bytes().index(b"general.name") + 14)
    assert {verify_file(copy, fast=True, seed=seed).exit_code for seed in range(5)} == {5}


def test_forged_hashes_are_found_by_the_root_from_elsewhere(copy: Path, tiny_gguf: Path) -> None:
    published = verify_file(copy).root
    assert verify_file(copy, root=published.upper()).exit_code == 0
    forged = copy.with_name("forged.gguf")
    shutil.copy(tiny_gguf, forged)
    change(forged, read_structure(forged).tensors[0].start)
    seal(forged, Manifest(template=read_structure(forged).text("tokenizer.chat_template"), no_probe="forged"))
    assert verify_file(forged).exit_code == 0, "who can write the file can write hashes"
    assert statuses(verify_file(forged, root=published))["given root"] == "failed"
    with pytest.raises(UsageError, match="64 hexadecimal digits"):
        verify_file(copy, root="abc")


def test_file_without_manifest_is_unknown(tiny_gguf: Path) -> None:
    found = verify_file(tiny_gguf)
    assert (found.exit_code, found.known) == (0, False)
    assert statuses(found)["manifest"] == "skipped"
    assert verify_file(tiny_gguf, require_manifest=True).exit_code == 5


def test_file_without_manifest_is_compared_with_a_sidecar(tiny_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    shutil.copy(tiny_gguf, path)
    done = subprocess.run(
        [sys.executable, "-m", "gguf.scripts.gguf_hash", path.name], cwd=tmp_path, capture_output=True, text=True
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(("sha256", "sha1"))]
    for kept in (lines, [line for line in lines if line.endswith(" m.gguf")]):
        sidecar_of(path).write_text("\n".join(kept) + "\n")
        assert statuses(verify_file(path))["sidecar"] == "passed"
        change(path, read_structure(path).tensors[-1].start)
        assert statuses(verify_file(path))["sidecar"] == "failed"
        change(path, read_structure(path).tensors[-1].start)


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "no sha256 lines"), ("sha256    12  other.gguf:x\n", "of another file"), ("\x00" * 50, "no sha256 lines")],
)
def test_sidecar_that_is_none_fails(copy: Path, content: str, said: str) -> None:
    sidecar_of(copy).write_text(content)
    found = verify_file(copy)
    assert found.exit_code == 5
    assert [said in check.said for check in found.checks if check.name == "sidecar"] == [True]


def test_sidecar_is_what_gguf_hash_writes(sealed_gguf: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gguf.scripts.gguf_hash", sealed_gguf.name],
        cwd=sealed_gguf.parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    theirs = [line for line in done.stdout.splitlines() if line.startswith("sha256")]
    assert sidecar_of(sealed_gguf).read_text().splitlines() == theirs


def test_verify_imports_neither_mlx_nor_llama_cpp(sealed_gguf: Path) -> None:
    code = (
        f"import sys; from aird_mlx_cli.main import main; code = main(['verify', {str(sealed_gguf)!r}]); "
        "print(code, [name for name in ('mlx', 'mlx.core', 'mlx_lm', 'llama_cpp', 'transformers') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


def test_command_gives_json_and_its_exit_code(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(copy), "--json"]) == 0
    found = from_json(Verification, capsys.readouterr().out)
    assert found.known and found.checks[0].name == "structure"
    change(copy, read_structure(copy).tensors[0].start)
    assert main(["verify", str(copy), "--json"]) == 5
    assert json.loads(capsys.readouterr().out)["checks"]
    assert main(["verify", str(copy)]) == 5
    assert "This file failed" in capsys.readouterr().out
    assert main(["verify", str(copy.with_name("missing.gguf"))]) == 1
    assert capsys.readouterr().err.startswith("error: structure: ")


def test_words_of_a_hostile_file_do_not_reach_the_terminal(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sidecar_of(copy).write_text("sha256    12  m.gguf:\x1b[2Jopen\n")
    assert main(["verify", str(copy)]) == 5
    said = capsys.readouterr().out
    assert "\\x1b[2Jopen" in said and "\x1b[2Jopen" not in said


def test_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(AirdError, match="not a regular file"):
        verify_file(tmp_path)


def test_a_model_without_a_template_is_said(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    from aird_mlx.gguf_export import export_gguf

    folder = model_folder(seed=9)
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": None}))
    export_gguf(folder, tmp_path / "m.gguf", "f32")
    found = verify_file(tmp_path / "m.gguf")
    assert (found.exit_code, statuses(found)["template lint"]) == (0, "warned")
