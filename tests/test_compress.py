"""Pruning and quantizing alone: what is written, what is said, and what is refused before anything is done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

import oracle
from aird_mlx.compress import prune_on_reference, write_pruned, write_quantized
from aird_mlx.direction import Direction
from aird_mlx.errors import AirdError, ModelError, OutputError, UsageError
from aird_mlx.gguf_export import export_gguf
from aird_mlx.model import load
from aird_mlx.report import PruningReport, from_json
from aird_mlx.settings import PruningSettings, QuantizationSettings
from aird_mlx_cli.main import main
from conftest import make_reference


def test_pruned_folder_holds_what_the_report_says(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    source, out = model_folder(), tmp_path / "out"
    report = write_pruned(str(source), out, PruningSettings(method="magnitude", sparsity=0.6, scope="matrix"))
    mlx_lm.load(str(out))
    before, after = (mx.load(str(folder / "model.safetensors")) for folder in (source, out))
    for one in report.tensors:
        key = f"model.layers.{one.block}.{one.name}.weight"
        weight = np.array(before[key], dtype=np.float64)
        mask = oracle.lowest_mask(np.abs(weight).reshape(1, -1), int(weight.size * 0.6)).reshape(weight.shape)
        np.testing.assert_array_equal(np.array(after[key]), np.where(mask, 0.0, weight).astype(np.float32))
        assert one.sparsity == mask.mean()
    assert report.written == {"mlx": str(out)}
    assert any("no smaller" in note for note in report.notes)
    assert report.sizes["mlx"] == (out / "model.safetensors").stat().st_size
    assert set(report.sizes) == {"mlx", "gguf f16", "gguf q8_0", "gguf q4_0", "packed"}
    pruned = sum(one.weights for one in report.tensors)
    zeros = sum(one.weights * one.sparsity for one in report.tensors)
    assert report.sizes["packed"] == pytest.approx(report.sizes["mlx"] - 4 * zeros + pruned / 8, abs=1)
    exported = export_gguf(out, tmp_path / "out.gguf", "q8_0")
    assert report.sizes["gguf q8_0"] == sum(tensor.n_bytes for tensor in gguf.GGUFReader(exported.path).tensors)


def test_prune_then_quantize_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pruned, quantized = tmp_path / "pruned", tmp_path / "quantized"
    assert main(["prune", "demo", "--prune-method", "magnitude", "--pattern", "2:4", "--out", str(pruned)]) == 0
    shown = capsys.readouterr().out
    assert "50.0 % of 56 linears' weights are zero (50.0 % asked)" in shown
    assert str(pruned) in shown
    assert main(["quantize", str(pruned), "--q-bits", "4", "--q-group-size", "32", "--out", str(quantized)]) == 0
    shown = capsys.readouterr().out
    assert "100 % of the zeros kept" in shown
    model = load(quantized)
    for _, name, linear in model.linears():
        groups = np.array(linear.weight == 0).reshape(linear.weight.shape[0], -1, 4).sum(axis=-1)
        assert (groups >= 2).all(), name
    assert main(["quantize", str(quantized), "--out", str(tmp_path / "twice")]) == 1
    assert "quantized already (4 bits, group 32)" in capsys.readouterr().err
    assert not (tmp_path / "twice").exists()


def test_prune_json_is_the_report_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", "demo", "--prune-method", "random", "--out", str(tmp_path / "out"), "--json"]) == 0
    captured = capsys.readouterr()
    report = from_json(PruningReport, captured.out)
    assert captured.err == ""
    assert (report.method, report.model, len(report.tensors), report.sparsity) == ("random", "demo", 56, 0.5)


def test_quantize_writes_mixed_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["quantize", "demo", "--quant-predicate", "mixed_4_6", "--out", str(out), "--json"]) == 0
    bits = {one["bits"] for one in json.loads(capsys.readouterr().out)["tensors"]}
    assert bits == {4, 6}
    mlx_lm.load(str(out))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["quantize", "demo", "--q-bits", "7"], 2, "bits is 7"),
        (["quantize", "demo", "--q-group-size", "48"], 2, "group_size is 48"),
        (["quantize", "demo", "--q-group-size", "128"], 2, "does not divide the 64 inputs"),
        (["quantize", "demo", "--q-mode", "mxfp4", "--q-bits", "8"], 2, "bits is 8"),
        (["quantize", "demo", "--q-bits", "4", "--quant-predicate", "mixed_4_6"], 2, "mixed_4_6"),
        (["quantize", "/no/such/dir"], 1, "/no/such/dir"),
        (["prune", "/no/such/dir"], 1, "/no/such/dir"),
        (["prune", "demo", "--pattern", "3:7"], 2, "3:7"),
        (["prune", "demo", "--scope", "matrix", "--prune-method", "sparsegpt"], 2, "scope matrix"),
        (["prune", "demo", "--allocation", "owl", "--pattern", "2:4"], 2, "allocation owl"),
        (["prune", "demo", "--prune-method", "none"], 2, "none"),
    ],
)
def test_bad_compression_is_one_line_and_writes_nothing(
    arguments: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--out", str(tmp_path / "out")]) == code
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_output_that_exists_is_left_alone(tmp_path: Path) -> None:
    for write in (write_pruned, write_quantized):
        with pytest.raises(OutputError, match="exists"):
            write("demo", tmp_path)
    with pytest.raises(UsageError, match="method is 'guess'"):
        write_pruned("demo", tmp_path / "out", PruningSettings(method="guess"))


def test_quantized_model_is_pruned_after_a_word(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    write_quantized(str(model_folder()), tmp_path / "q", QuantizationSettings(group_size=32))
    report = write_pruned(str(tmp_path / "q"), tmp_path / "p", PruningSettings(method="magnitude"))
    assert any("dequantized" in note for note in report.notes)
    with pytest.raises(ModelError, match=r"quantized already \(4 bits, group 32\)"):
        write_quantized(str(tmp_path / "q"), tmp_path / "q2")


@pytest.mark.parametrize("allocation", ["uniform", "owl", "safety"])
def test_allocations_remove_the_same_total(model_folder: Callable[..., Path], allocation: str) -> None:
    dense, model = load(model_folder()), load(model_folder())
    vector = mx.ones(32) / 32**0.5
    direction = Direction(vector, 2, -1, 1.0, 0.0, 0.0, 0.0, True, (6, 6), (4, 4))
    settings = PruningSettings(method="sparsegpt", sparsity=0.6, allocation=allocation)
    report = prune_on_reference(model, make_reference(dense), settings, direction)
    assert report.allocation == allocation
    assert report.sparsity == pytest.approx(0.6, abs=1e-3)
    assert (len({round(one.sparsity, 2) for one in report.tensors}) > 1) == (allocation != "uniform")


def test_calibration_kinds_are_what_pruning_sees(model_folder: Callable[..., Path]) -> None:
    reference = make_reference(load(model_folder()))
    masks = []
    for kinds in ("harmless", "all"):
        model = load(model_folder())
        prune_on_reference(model, reference, PruningSettings(calibration_kinds=kinds))
        masks.append([np.array(linear.weight == 0) for _, _, linear in model.linears()])
    assert any((one != other).any() for one, other in zip(*masks, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sparsegpt", "wanda"])
def test_safety_allocation_of_the_demo_by_command(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The block that writes the direction is spared."""
    out = tmp_path / "out"
    words = ["--prune-method", method, "--sparsity", "0.6", "--allocation", "safety", "--out", str(out), "--json"]
    assert main(["prune", "demo", *words]) == 0
    blocks = from_json(PruningReport, capsys.readouterr().out).block_sparsity()
    assert blocks[0] < 0.5 < 0.6 < blocks[5]


def test_errors_of_this_module_are_one_line() -> None:
    with pytest.raises(AirdError) as raised:
        write_quantized("demo", Path("/tmp/never"), QuantizationSettings("mxfp4", mixed="mixed_4_6"))
    assert "\n" not in str(raised.value)
    assert "mixed_4_6" in str(raised.value)
