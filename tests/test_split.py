"""A file in parts: as gguf-split makes them, run by llama.cpp, verified as a whole, and all there or none."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from aird_mlx.errors import ExportError, IntegrityError, UsageError
from aird_mlx.gguf_export import LlamaRuntime, export_gguf, is_available
from aird_mlx.guard.split import export_in_parts, group_tensors, read_split_size, split_file
from aird_mlx.guard.structure import read_structure
from aird_mlx.guard.verify import verify_file
from aird_mlx_cli.main import main
from conftest import write_model

needs_llama = pytest.mark.skipif(not is_available(), reason="llama-cpp-python is not installed")


def statuses(path: Path, **how: Any) -> dict[str, str]:
    return {check.name: check.status for check in verify_file(path, **how).checks}


def test_parts_hold_all_tensors_and_the_first_all_keys(tiny_gguf: Path, tmp_path: Path) -> None:
    parts = split_file(tiny_gguf, tmp_path / "m.gguf", max_tensors=5)
    names = [path.name for path in parts]
    assert names == [f"m-{number:05d}-of-{len(parts):05d}.gguf" for number in range(1, len(parts) + 1)]
    assert sorted(os.listdir(tmp_path)) == names
    whole = gguf.GGUFReader(tiny_gguf)
    readers = [gguf.GGUFReader(path) for path in parts]
    found = [tensor for reader in readers for tensor in reader.tensors]
    assert [len(reader.tensors) for reader in readers[:-1]] == [5] * (len(parts) - 1)
    for tensor, same in zip(whole.tensors, found, strict=True):
        assert (tensor.name, tensor.tensor_type, list(tensor.shape)) == (same.name, same.tensor_type, list(same.shape))
        assert np.array_equal(tensor.data, same.data)
    for number, reader in enumerate(readers):
        keys = {name: field.contents() for name, field in reader.fields.items() if name.startswith("split.")}
        wanted = {"split.no": number, "split.count": len(parts), "split.tensors.count": len(whole.tensors)}
        assert keys == wanted
        assert reader.fields["split.no"].types == [gguf.GGUFValueType.UINT16]
        assert reader.fields["split.tensors.count"].types == [gguf.GGUFValueType.INT32]
    first = {name: field.contents() for name, field in readers[0].fields.items() if not name.startswith("GGUF.")}
    own = {name: field.contents() for name, field in whole.fields.items() if not name.startswith("GGUF.")}
    assert first == own | {key: first[key] for key in first if key.startswith("split.")}
    assert [name for name in readers[1].fields if not name.startswith(("GGUF.", "split."))] == []


def test_size_counts_padded_tensors_and_a_large_one_stands_alone(tiny_gguf: Path) -> None:
    tensors = read_structure(tiny_gguf).tensors
    largest = max(tensor.size for tensor in tensors)
    groups = group_tensors(tensors, largest, None)
    assert [one for group in groups for one in group] == list(tensors)
    assert all(sum(one.size + -one.size % 32 for one in group) <= largest for group in groups)
    assert [len(group) for group in group_tensors(tensors, 1, None)] == [1] * len(tensors)
    assert [group_tensors(tensors, None, None), group_tensors(tensors, 10**9, 10**6)] == [[list(tensors)]] * 2


@needs_llama
def test_llama_cpp_gives_the_same_logits_from_parts(tiny_gguf: Path, tmp_path: Path) -> None:
    first, *_ = split_file(tiny_gguf, tmp_path / "m.gguf", max_size=9000)
    ids = list(range(3, 30))
    with LlamaRuntime(tiny_gguf, n_ctx=64) as whole, LlamaRuntime(first, n_ctx=64) as parts:
        assert np.array_equal(whole.logits(ids), parts.logits(ids))


def test_verify_sees_every_part_of_a_sealed_file(sealed_gguf: Path, tmp_path: Path) -> None:
    parts = split_file(sealed_gguf, tmp_path / "m.gguf", max_tensors=6)
    found = verify_file(parts[0])
    assert found.exit_code == 0, found.checks
    assert found.known
    assert found.size_bytes == sum(path.stat().st_size for path in parts)
    assert statuses(parts[0], root=found.root)["given root"] == "passed"
    # a byte of a tensor, of a tensor's name, of a count, in a part that is not the first
    structure = read_structure(parts[1])
    before = parts[1].read_bytes()
    name_at = before.index(structure.tensors[0].name.encode())
    for place, check in ((structure.tensors[-1].start, "tensors"), (name_at, "metadata"), (structure.size, "metadata")):
        changed = bytearray(before) + b"\0" * (place == structure.size)
        changed[place] ^= 1 if place < structure.size else 0
        parts[1].write_bytes(changed)
        failed = {name for name, status in statuses(parts[0]).items() if status == "failed"}
        assert check in failed, failed
    parts[1].write_bytes(before)
    assert verify_file(parts[0]).exit_code == 0


def test_verify_misses_a_part_and_a_wrong_one(sealed_gguf: Path, tmp_path: Path) -> None:
    parts = split_file(sealed_gguf, tmp_path / "m.gguf", max_tensors=6)
    assert statuses(parts[1])["parts"] == "failed"  # not the first
    renamed = tmp_path / "other.gguf"
    renamed.write_bytes(parts[0].read_bytes())
    assert statuses(renamed)["parts"] == "failed"
    third = parts[2].read_bytes()
    parts[2].write_bytes(parts[1].read_bytes())
    assert statuses(parts[0])["parts"] == "failed"
    parts[2].unlink()
    found = verify_file(parts[0])
    assert found.exit_code == 5
    assert any(f"{parts[2].name} is missing" in check.said for check in found.checks)
    parts[2].write_bytes(third)
    assert verify_file(parts[0]).exit_code == 0


def test_existing_part_is_kept_and_nothing_is_written(tiny_gguf: Path, tmp_path: Path) -> None:
    there = tmp_path / "m-00002-of-00009.gguf"
    there.write_text("mine")
    with pytest.raises(ExportError, match="exists already"):
        split_file(tiny_gguf, tmp_path / "m.gguf", max_tensors=5)
    assert os.listdir(tmp_path) == [there.name]
    assert there.read_text() == "mine"


def test_full_disk_leaves_no_part(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename, renamed = Path.replace, []

    def full(self: Path, target: Path) -> Path:
        if len(renamed) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        renamed.append(target)
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ExportError, match="cannot be written"):
        split_file(tiny_gguf, tmp_path / "m.gguf", max_tensors=5)
    assert len(renamed) == 2
    assert os.listdir(tmp_path) == []


def test_damaged_source_leaves_nothing(tiny_gguf: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(tiny_gguf.read_bytes()[:-100])
    with pytest.raises(IntegrityError):
        split_file(damaged, tmp_path / "m.gguf", max_tensors=5)
    assert os.listdir(tmp_path) == ["damaged.gguf"]


def test_export_in_parts_keeps_only_the_parts(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    out = tmp_path / "new" / "m.gguf"
    written = export_in_parts(folder, out, "q8_0", max_size=20_000, max_tensors=None)
    whole = export_gguf(folder, tmp_path / "whole.gguf", "q8_0")
    assert list(written.parts) == sorted(out.parent.iterdir())
    assert len(written.parts) > 2
    assert written.path == written.parts[0]
    assert (written.tensors, written.sparsity) == (whole.tensors, whole.sparsity)
    with pytest.raises(ExportError):
        export_in_parts(folder, tmp_path / "other" / "m.gguf", "no-type", max_size=1, max_tensors=None)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("text", ["2", "0G", "-1G", "1.5G", "G", "2T", ""])
def test_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="a whole number with K, M or G"):
        read_split_size(text)


def test_command_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_model(tmp_path / "model")
    command = ["export", str(folder), "--outfile", str(tmp_path / "m.gguf")]
    assert main([*command, "--split-max-size", "50K", "--dry-run"]) == 0
    planned = capsys.readouterr().out
    assert main([*command, "--split-max-size", "50K"]) == 0
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) > 1
    assert f"the file is written in {len(parts)} parts" in planned
    said = capsys.readouterr().out
    assert [path.name for path in parts if f"{path.name}\n" not in said] == []
    assert main(["verify", str(parts[0])]) == 0
    assert main([*command, "--split-max-tensors", "9"]) == 1
    assert main([*command, "--split-max-size", "50"]) == 2
    assert sorted(tmp_path.glob("*.gguf")) == parts
