"""`repair -q` on the embedded model, and its repair as adapters: what is written, measured, and run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest

from aird_mlx.compress import write_pruned, write_quantized
from aird_mlx.direction import Direction, save_direction
from aird_mlx.errors import AirdError, ExportError, UsageError
from aird_mlx.evaluation import measure_utility
from aird_mlx.gguf_export import export_gguf, is_available
from aird_mlx.model import load, save
from aird_mlx.patch import LinearPatch, Patch, fold, load_patch, save_patch
from aird_mlx.pipeline import RepairSettings, output_folder, plan_repair, repair_model
from aird_mlx.pipeline.adapters import export_adapters
from aird_mlx.pipeline.halves import difference
from aird_mlx.pipeline.run import _Run
from aird_mlx.quantization import load_quantized, restore_modules
from aird_mlx.report import AdapterReport, DirectionFigures, RepairFigures, Report, from_json, to_json
from aird_mlx.settings import PruningSettings, QuantizationSettings
from aird_mlx.workspace import Workspace
from aird_mlx_cli.main import main
from conftest import make_reference

needs_llama = pytest.mark.skipif(not is_available(), reason="llama-cpp-python is not installed")
QUICK: dict[str, Any] = {"limit": 8, "max_new_tokens": 16, "rule": "restore", "prune_method": "magnitude"}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """`repair demo -q` as a user runs it, with few test prompts and a repair along r only; for reading only."""
    out = tmp_path_factory.mktemp("quantized") / "out"
    settings = RepairSettings("demo", pattern="2:4", quantize=True, q_bits=3, gguf=("auto",), out=out, **QUICK)
    return out, repair_model(settings)


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo pruned 2:4, in 3 bits, by the commands that only compress; for reading only."""
    folder = tmp_path_factory.mktemp("compressed")
    write_pruned("demo", folder / "pruned", PruningSettings("magnitude", pattern="2:4"))
    write_quantized(str(folder / "pruned"), folder / "mlx", QuantizationSettings(bits=3))
    return folder / "mlx"


@pytest.fixture(scope="module")
def run(compressed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves that an adapter is made of: the report, the patch, the repaired model in 3 bits."""
    out = tmp_path_factory.mktemp("run") / "out"
    out.mkdir()
    before, after = load_quantized(compressed, load("demo"), {}), load_quantized(compressed, load("demo"), {})
    parts = tuple(
        LinearPatch(block, name, delta=0.3 * linear.weight.std() * mx.random.normal(linear.weight.shape, key=key))
        for (block, name, linear), key in zip(before.linears(), mx.random.split(mx.random.key(0), 56), strict=True)
    )
    fold(after, Patch("distill", 1.0, 0.0, parts))
    report = example_report()
    save_patch(difference(before, after, report.repair), out / "patch.safetensors")
    restore_modules(after)
    save(after, out / "mlx")
    (out / "report.json").write_text(to_json(report), encoding="utf-8")
    save_direction(
        Direction(mx.eye(64)[3], 3, -1, 2.5, -1.0, 1.0, 0.0, True, (6, 6), (4, 4)), out / "direction.safetensors"
    )
    return out


def example_report() -> Report:
    """The least there can be in a report."""
    return Report(
        "demo", {}, {}, DirectionFigures(0, -1, 1.0, 1.0), [], RepairFigures("distill", [0], 1.0, None, 0.0), []
    )


@pytest.mark.slow
def test_written_folder_is_quantized_and_keeps_every_pruned_zero(whole_run: tuple[Path, Report]) -> None:
    out, report = whole_run
    network, _ = mlx_lm.load(str(out / "mlx"))
    assert any(isinstance(module, nn.QuantizedLinear) for module in network.modules())
    assert json.loads((out / "mlx" / "config.json").read_text())["quantization"]["bits"] == 3
    zeros = weights = 0
    for _, name, linear in load(out / "mlx").linears():
        groups = np.array(linear.weight == 0).reshape(linear.weight.shape[0], -1, 4).sum(axis=-1)
        assert (groups >= 2).all(), name
        zeros, weights = zeros + int((linear.weight == 0).sum().item()), weights + linear.weight.size
    row = report.stage("repaired")
    assert row.sparsity == zeros / weights >= 0.5
    assert report.repair.sparsity_lost == 0
    size = sum(array.nbytes for array in mx.load(str(out / "mlx" / "model.safetensors")).values())
    assert row.bits_per_weight == pytest.approx(8 * size / load("demo").parameters, rel=1e-9)
    assert row.bits_per_weight == pytest.approx(report.stage("compressed").bits_per_weight, abs=0.01)
    assert report.quantization is not None
    assert (report.quantization.bits, report.quantization.zeros_kept) == (3, 1.0)


@pytest.mark.slow
def test_patch_is_the_difference_of_what_is_written_and_the_compressed_model(
    whole_run: tuple[Path, Report], compressed: Path
) -> None:
    out, _ = whole_run
    before, after, patch = load(compressed), load(out / "mlx"), load_patch(out / "patch.safetensors")
    changed = 0
    for part in patch.parts:
        old, new = (np.array(model.linear(part.block, part.name).weight) for model in (before, after))
        np.testing.assert_allclose(old + np.array(part.change()), new, atol=1e-6)
        changed += int((old != new).sum())
    assert changed > 100


@pytest.mark.slow
def test_files_of_a_quantized_run(whole_run: tuple[Path, Report]) -> None:
    out, report = whole_run
    left = {path.name for path in out.iterdir()}
    assert left == {"mlx", "gguf", "direction.safetensors", "patch.safetensors", "report.json", "report.md"}
    assert (out / "gguf" / "demo-repaired-Q4_1.gguf").is_file()
    assert report.written["gguf q4_1"] == str(out / "gguf" / "demo-repaired-Q4_1.gguf")
    assert from_json(Report, (out / "report.json").read_text()) == report


@pytest.mark.slow
@needs_llama
def test_exported_file_has_the_codes_of_the_written_folder(whole_run: tuple[Path, Report]) -> None:
    _, report = whole_run
    row = report.stage("exported:q4_1")
    assert row.parity is not None
    assert row.parity.mean_kl < 0.002  # the likeliest token is a near tie in one text of this model
    assert any("keep their codes, and scales as float16 holds them" in note for note in row.notes)
    assert not any("quantized anew" in note for note in row.notes), "pruned weights have scales with an exact zero"


def fail_on_repair(stage: str, done: int, total: int) -> None:
    """What a resumed run may not do again."""
    assert not stage.startswith("repair"), stage


@pytest.mark.parametrize("prune_method", ["magnitude", "none"])
def test_both_halves_of_a_repair_end_in_a_quantized_folder(
    model_folder: Callable[..., Path], tmp_path: Path, prune_method: str
) -> None:
    folder = model_folder()
    settings = RepairSettings(
        str(folder), prune_method=prune_method, quantize=True, q_bits=2, q_group_size=32, rule="distill", seed=0
    )
    dense = load(folder)
    reference = make_reference(dense)
    workspace = Workspace(tmp_path / "out", {}, resume=False)
    job = _Run(settings, workspace, dense, reference.inputs, lambda stage, done, total: None)
    direction = Direction(mx.eye(32)[0], 2, -1, 1.0, -1.0, 1.0, 0.0, True, (6, 6), (4, 4))
    compressed = job.compression.compress(reference, direction)
    tokens = reference.held_out
    before = measure_utility(compressed, tokens, dense=dense).kl_to_dense
    patch, repair = job._repaired(compressed, reference, direction)
    written, repair = job._written(compressed, patch, repair)
    after = measure_utility(written, tokens, dense=dense).kl_to_dense
    assert before is not None
    assert after is not None
    assert after < before
    tried = [(one.rule, one.tokens) for one in repair.tried]
    plain = [("reconstruct", "all"), ("distill", "all")][prune_method == "none" :]
    assert tried[: len(plain)] == plain
    assert tried[len(plain) :] in ([], [("distill", "crossed")]), "and on, where refusals are missing"
    assert repair.sparsity_lost == 0
    assert written.bits_per_weight == compressed.bits_per_weight < 4.2
    for part in patch.parts:
        old, new = (model.linear(part.block, part.name).weight for model in (compressed, written))
        np.testing.assert_allclose(np.array(old + part.change()), np.array(new), atol=1e-6)
        if prune_method != "none":
            assert not np.array(new)[~np.array(compressed.kept(part.block, part.name))].any()
    again = _Run(settings, workspace, dense, reference.inputs, fail_on_repair)
    resumed, _ = again._repaired(again.compression.compress(reference, direction), reference, direction)
    assert all(mx.array_equal(a.change(), b.change()).item() for a, b in zip(patch.parts, resumed.parts, strict=True))
    workspace.close()


@needs_llama
def test_adapters_of_a_run_are_its_repaired_model(
    run: Path, compressed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run
    base = export_gguf(compressed, tmp_path / "base.gguf", "f32").path
    command = ["export", str(out), "--as-lora", "--base", str(base), "--outfile", str(tmp_path / "patch.gguf")]
    assert main([*command, "--json"]) == 0
    report = from_json(AdapterReport, capsys.readouterr().out)
    assert report.check is not None
    assert report.check.max_logit_difference < 1e-4
    assert (report.lost, report.check.argmax_agreement) == (0.0, 1.0)
    assert report.base_distance == pytest.approx(0.0, abs=1e-6)
    assert report.check.adapted == report.check.repaired
    assert report.check.base.harmful is not None
    assert report.check.base.harmful.n == 16
    assert report.written["mlx adapter"] == str(tmp_path / "adapter")
    assert main(command) == 1
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("rank", [None, 5])
def test_mlx_adapter_loads_on_the_quantized_base(run: Path, compressed: Path, tmp_path: Path, rank: int | None) -> None:
    out = run
    report = export_adapters(out, outfile=tmp_path / "patch.gguf", rank=rank, control_vector=rank is None)
    assert report.check is None
    assert any("--base" in note for note in report.notes)
    ids = mx.array([[5, 17, 300, 42, 8]])
    wanted = mlx_lm.load(str(out / "mlx"))[0](ids)
    adapted = mlx_lm.load(str(compressed), adapter_path=report.written["mlx adapter"])[0](ids)
    alone = mlx_lm.load(str(compressed))[0](ids)
    if rank is None:
        assert mx.array_equal(adapted, wanted).item()
        assert report.lost == 0
        (tensor,) = gguf.GGUFReader(report.written["control vector"]).tensors
        np.testing.assert_array_equal(tensor.data, 2.5 * np.eye(64, dtype=np.float32)[3])
        assert tensor.name == "direction.2"
        assert any("emergencies only" in note for note in report.notes)
        return
    assert "control vector" not in report.written
    assert 0 < report.lost < 1
    assert float(mx.abs(adapted - alone).max().item()) > 1e-4
    cut = {}
    for part in load_patch(out / "patch.safetensors").parts:
        left, values, right = np.linalg.svd(np.array(part.change(), dtype=np.float64), full_matrices=False)
        cut[part.block, part.name] = (left[:, :rank] * values[:rank]) @ right[:rank]
    model = load(compressed)
    for block, name, linear in model.linears():
        linear.weight = linear.weight + mx.array(cut[block, name].astype(np.float32))
    np.testing.assert_allclose(np.array(adapted), np.array(model.network(ids)), atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("prune_method", ["none", "wanda"])
def test_refusals_lost_to_quantization_come_back(tmp_path: Path, prune_method: str) -> None:
    settings = RepairSettings(
        "demo", prune_method=prune_method, quantize=True, q_bits=2, rule="distill", gguf=(), out=tmp_path / "out"
    )
    report = repair_model(settings)
    compressed, repaired = report.stage("compressed"), report.stage("repaired")
    assert compressed.refusal.harmful
    assert repaired.refusal.harmful
    assert compressed.utility
    assert repaired.utility
    assert repaired.refusal.harmful.rate >= compressed.refusal.harmful.rate - 0.02
    assert repaired.utility.kl_to_dense < 0.5 * compressed.utility.kl_to_dense  # type: ignore[operator]
    assert report.repair.sparsity_lost == 0
    assert len(report.repair.tried) == (1 if prune_method == "none" else 2)


def test_plan_says_what_would_be_quantized(tmp_path: Path) -> None:
    plan = plan_repair(RepairSettings("demo", prune_method="none", quantize=True, q_bits=3, out=tmp_path / "out"))
    assert "quantize: affine, 3 bits, group 64" in plan.stages
    assert not any(stage.startswith("prune") for stage in plan.stages)
    named = output_folder(RepairSettings("demo", quantize=True, q_mode="mxfp4"))
    assert named.name == "demo-wanda-0.5-mxfp4-repaired"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"q_bits": 4}, "without -q"),
        ({"quantize": True, "q_bits": 7}, "bits is 7"),
        ({"quantize": True, "q_mode": "fp3"}, "mode is 'fp3'"),
        ({"quantize": True, "q_group_size": 128}, "does not divide the 64 inputs"),
        ({"quantize": True, "quant_predicate": "mixed_3_6", "q_bits": 4}, "chooses the bits itself"),
        ({"quantize": True, "controls": True}, "--controls with -q"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_runs(
    tmp_path: Path, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        plan_repair(RepairSettings("demo", out=tmp_path / "out", **given))


def test_as_lora_needs_the_folder_of_a_repair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AirdError, match=r"report\.json"):
        export_adapters(tmp_path)
    assert main(["export", "demo", "--lora-rank", "4"]) == 2
    assert "--lora-rank goes only with --as-lora" in capsys.readouterr().err
    assert main(["export", "demo", "--as-lora", "--outtype", "f16"]) == 2
    assert "--outtype does not go with --as-lora" in capsys.readouterr().err


def test_adapter_of_a_folder_without_its_patch_is_refused(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "report.json").write_bytes((run / "report.json").read_bytes())
    with pytest.raises(ExportError, match=r"no .*patch\.safetensors"):
        export_adapters(copy)
    assert [path.name for path in copy.iterdir()] == ["report.json"]
